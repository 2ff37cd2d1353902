"""The pinhole camera that travels with every picture.

Conventions (docs/conventions.md): world z up and right-handed, camera axes OpenCV (x right, y down,
z forward), `K` in pixels of the picture it travels with, pixel centres at +0.5. A change of the
picture is a 3x3 matrix `M` on homogeneous pixel coordinates, `(x_new, y_new, 1) ~ M (x, y, 1)`;
every method that implies such a change returns it beside the new camera, so that pixels and camera
cannot part ways. Only `mouselift_jax.data.crop` applies `M` to pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.precise import matmul, transform
from mouselift_jax.geometry.similarity import Similarity, array_namespace

Array = Any  # a numpy or a jax array: geometry computes with whichever it is given


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Camera:
    """One pinhole camera, or a batch of cameras of one picture size.

    Attributes:
        K: intrinsics [*B,3,3], pixels of a picture of `width` x `height`.
        c2w: camera-to-world [*B,4,4], OpenCV camera axes, scene units.
        width: picture width in pixels.
        height: picture height in pixels.
    """

    K: Array
    c2w: Array
    width: int = dataclasses.field(metadata={"static": True})
    height: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self) -> None:
        k_shape, c_shape = getattr(self.K, "shape", None), getattr(self.c2w, "shape", None)
        if k_shape is None or c_shape is None:
            return  # a pytree of specs, axes or sentinels, not of arrays
        if k_shape[-2:] != (3, 3) or c_shape[-2:] != (4, 4) or k_shape[:-2] != c_shape[:-2]:
            raise ShapeError(
                "a Camera needs K and c2w with the same batch shape",
                expected="K [*B,3,3] and c2w [*B,4,4]",
                found=f"K {list(k_shape)} and c2w {list(c_shape)}",
                fix="give both the same leading dimensions",
            )

    @property
    def w2c(self) -> Array:
        """World-to-camera [*B,4,4], the exact rigid inverse of `c2w`."""
        return invert_rigid(self.c2w)

    @property
    def center(self) -> Array:
        """Camera centres in the world [*B,3]."""
        return self.c2w[..., :3, 3]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions of the cameras."""
        return tuple(self.K.shape[:-2])

    def __getitem__(self, index: Any) -> Camera:
        """Index the leading dimensions, as an array would be."""
        return Camera(self.K[index], self.c2w[index], self.width, self.height)

    def project(self, points: Array) -> tuple[Array, Array]:
        """Project the same world points into every camera.

        Args:
            points: world points [*P,3], scene units.

        Returns:
            xy: pixel coordinates [*B,*P,2]; depth: camera z [*B,*P], scene units. Points with
            depth <= 0 are behind the camera and their `xy` is meaningless.
        """
        lead = len(self.batch_shape)
        return self.project_each(points[(None,) * lead])

    def project_each(self, points: Array) -> tuple[Array, Array]:
        """Project to each camera points of its own.

        Args:
            points: world points [*B,*P,3], scene units; dimensions of 1 in *B broadcast.

        Returns:
            xy [*B,*P,2] and depth [*B,*P] as in `project`.
        """
        w2c, K = self.w2c, self.K
        for _ in range(points.ndim - 1 - len(self.batch_shape)):
            w2c, K = w2c[..., None, :, :], K[..., None, :, :]
        cam = transform(w2c[..., :3, :3], points) + w2c[..., :3, 3]
        pix = transform(K, cam)
        return pix[..., :2] / pix[..., 2:], cam[..., 2]

    def cropped(self, x0: float, y0: float, width: int, height: int) -> tuple[Camera, Array]:
        """The camera of the window that starts at (x0, y0), in pixels; it may leave the picture.

        Returns:
            The new camera, and M [3,3] from old to new pixel coordinates.
        """
        xp = array_namespace(x0, y0)
        M = xp.array([[1.0, 0.0, -x0], [0.0, 1.0, -y0], [0.0, 0.0, 1.0]])
        return self._mapped(M, width, height), M

    def resized(self, width: int, height: int) -> tuple[Camera, Array]:
        """The camera of the picture resized to width x height pixels.

        Returns:
            The new camera, and M [3,3] from old to new pixel coordinates.
        """
        M = np.diag([width / self.width, height / self.height, 1.0])
        return self._mapped(M, width, height), M

    def flipped(self) -> tuple[Camera, Array]:
        """The camera that sees the mirrored world in the mirrored picture (x -> -x in both).

        A mirrored picture shows a mirrored world; the world is mirrored in its x axis.

        Returns:
            The new camera, and M [3,3] from old to new pixel coordinates.
        """
        xp = array_namespace(self.K)
        M = np.array([[-1.0, 0.0, self.width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        flip4 = xp.asarray(np.diag([-1.0, 1.0, 1.0, 1.0]), dtype=self.c2w.dtype)
        flip3 = flip4[:3, :3]
        K = matmul(matmul(xp.asarray(M, dtype=self.K.dtype), self.K), flip3)
        c2w = matmul(matmul(flip4, self.c2w), flip4)
        return Camera(K, c2w, self.width, self.height), M

    def rotated(
        self, R_new_from_old: Array, K_new: Array, width: int, height: int
    ) -> tuple[Camera, Array]:
        """Turn the camera about its own centre and give it new intrinsics.

        A turn about the centre changes the picture by a homography, whatever the scene.

        Args:
            R_new_from_old: rotation [*B,3,3] from old to new camera axes.
            K_new: intrinsics of the new picture [*B,3,3], pixels.
            width: new picture width, pixels.
            height: new picture height, pixels.

        Returns:
            The new camera, and M [*B,3,3] from old to new pixel coordinates.
        """
        xp = array_namespace(self.K, R_new_from_old, K_new)
        R = xp.asarray(R_new_from_old, dtype=self.c2w.dtype)
        K_new = xp.broadcast_to(xp.asarray(K_new, dtype=self.K.dtype), self.K.shape)
        M = matmul(matmul(K_new, R), xp.linalg.inv(self.K))
        rot = matmul(self.c2w[..., :3, :3], xp.swapaxes(R, -1, -2))
        top = xp.concatenate([rot, self.c2w[..., :3, 3:]], axis=-1)
        c2w = xp.concatenate([top, self.c2w[..., 3:, :]], axis=-2)
        return Camera(K_new, c2w, width, height), M

    def transformed(self, similarity: Similarity) -> Camera:
        """The same pictures in a world moved by x' = scale R x + t (one similarity for all)."""
        xp = array_namespace(self.c2w)
        rot = matmul(similarity.R, self.c2w[..., :3, :3])
        centre = similarity.apply(self.c2w[..., :3, 3])
        top = xp.concatenate([rot, centre[..., None]], axis=-1)
        c2w = xp.concatenate([top, self.c2w[..., 3:, :]], axis=-2)
        return Camera(self.K, c2w, self.width, self.height)

    def _mapped(self, M: Array, width: int, height: int) -> Camera:
        xp = array_namespace(self.K, M)
        K = matmul(xp.asarray(M, dtype=self.K.dtype), self.K)
        return Camera(K, self.c2w, int(width), int(height))


def stack_cameras(cameras: Sequence[Camera], *, any_size: bool = False) -> Camera:
    """Stack cameras of one picture size along a new leading axis.

    Args:
        cameras: of equal batch shape.
        any_size: their pictures may differ in size, for what asks where points go and looks at no
            picture; the result then has pictures of one pixel.
    """
    sizes = {(1, 1)} if any_size else {(c.width, c.height) for c in cameras}
    if len(sizes) != 1:
        raise ShapeError(
            "cameras of different picture sizes cannot be stacked",
            found=sorted(sizes),
            fix="resize the pictures (and with them the cameras) to one size first",
        )
    xp = array_namespace(cameras[0].K)
    width, height = sizes.pop()
    return Camera(
        xp.stack([c.K for c in cameras]), xp.stack([c.c2w for c in cameras]), width, height
    )


def invert_rigid(pose: Array) -> Array:
    """Inverse of a rigid transform [*B,4,4] by transposition, exact to rounding."""
    xp = array_namespace(pose)
    rot = xp.swapaxes(pose[..., :3, :3], -1, -2)
    trans = -matmul(rot, pose[..., :3, 3:])
    return xp.concatenate([xp.concatenate([rot, trans], axis=-1), pose[..., 3:, :]], axis=-2)


def intrinsics(fx: Array, fy: Array, cx: Array, cy: Array) -> Array:
    """K [*B,3,3] from focal lengths and principal point in pixels."""
    xp = jnp if any(isinstance(v, jax.Array) for v in (fx, fy, cx, cy)) else np
    fx, fy, cx, cy = xp.broadcast_arrays(*(xp.asarray(v, dtype=float) for v in (fx, fy, cx, cy)))
    zero, one = xp.zeros_like(fx), xp.ones_like(fx)
    rows = [[fx, zero, cx], [zero, fy, cy], [zero, zero, one]]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
