"""What the white background tells: which patches show the animal, and where its surface can lie.

Pictures come on white, so the silhouette of every view is known without a mask. A mouse covers a
tenth of its pictures' patches, and most of a ray cannot meet it; a small network need not learn
either.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import invert_rigid
from mouselift_jax.geometry.precise import matmul
from mouselift_jax.models.layers import AnyArray

WHITE = 1 - 0.5 / 255  # a channel at least this bright is saturated
REACH = 0.9  # scene units of a ray that are tried, each side of its point nearest the origin
SPACING = 1.6  # pixels between the points tried, about


def is_white(colors: Float[AnyArray, "... 3"]) -> Bool[AnyArray, "..."]:
    """Whether pixels are background: saturated in every channel."""
    return (colors >= WHITE).all(-1)


def room(n_patches: int, share: float | None) -> int:
    """How many of so many patches can become tokens; None = all."""
    return n_patches if share is None else math.ceil(share * n_patches)


def animal_first(colors: Float[Array, "B L F"], share: float) -> Int[Array, "B M"]:
    """Indices of the patches that are not all white, in order, then of others up to `room`."""
    white = is_white(colors.reshape(*colors.shape[:2], -1, 3)).all(-1)
    return jnp.argsort(white, axis=1, stable=True)[:, : room(colors.shape[1], share)]


def animal_patches(images: Float[AnyArray, "*B V H W 3"], patch_size: int) -> tuple[int, int]:
    """The most patches a sample's animal covers, and how many there are; on the host."""
    p, (v, h, w) = patch_size, images.shape[-4:-1]
    white = is_white(np.asarray(images)).reshape(-1, v, h // p, p, w // p, p).all((3, 5))
    return int((~white).sum((1, 2, 3)).max()), v * (h // p) * (w // p)


def check_room(images: Float[AnyArray, "*B V H W 3"], patch_size: int, share: float | None) -> None:
    """Make sure that no patch of the animal is left out; the compiled step could not say so.

    Args:
        images: pictures the network is about to get, on white.
        patch_size: the network's, pixels.
        share: the network's `animal_share`.

    Raises:
        ShapeError: there is too little room for a sample.
    """
    if share is None:
        return
    most, total = animal_patches(images, patch_size)
    if most > room(total, share):
        raise ShapeError(
            "the animal covers more patches than the network has room for",
            where="config.model.animal_share",
            expected=f"at most {room(total, share)} of {total} patches",
            found=most,
            fix=f"--config.model.animal_share={math.ceil(100 * most / total) / 100:.2f} or "
            "more, in a new --workdir",
        )


def hull_span(
    solid: Bool[Array, "B V H W"],
    K: Float[Array, "B V 3 3"],
    c2w: Float[Array, "B V 4 4"],
    ray_o: Float[Array, "B M 3"],
    ray_d: Float[Array, "B M 3"],
) -> tuple[Float[Array, "B M"], Float[Array, "B M"]]:
    """Where each ray enters and leaves the visual hull (Laurentini, 1994), as distances along it.

    Silhouettes are never perfect: where no point of a ray is inside all of them, the points inside
    most of them count. Outside of a picture nothing is known, which speaks against nothing.

    Args:
        solid: pixels that are not background.
        K: intrinsics in pixels of `solid`.
        c2w: camera-to-world, object at the origin, cameras near radius 2.7.
        ray_o: origins of the rays.
        ray_d: their unit directions.
    """
    height, width = solid.shape[-2:]
    n = round(width / SPACING)
    step = 2 * REACH / n
    places = jnp.arange(0.5, n) * step - REACH
    t = places - (ray_o * ray_d).sum(-1, keepdims=True)  # [B,M,n]

    def count(votes: Array, view: tuple[Array, Array, Array]) -> tuple[Array, None]:
        solid, K, w2c = view  # [B,H,W], [B,3,3], [B,4,4]
        turned = matmul(K, w2c[:, :3, :3])
        o = matmul(ray_o, turned.mT) + matmul(K, w2c[:, :3, 3:]).mT  # o + t d: homogeneous pixel
        d = matmul(ray_d, turned.mT)
        x, y, z = (o[..., i, None] + t * d[..., i, None] for i in range(3))
        column, row = jnp.floor(x / z).astype(jnp.int32), jnp.floor(y / z).astype(jnp.int32)
        seen = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = jnp.where(seen, row * width + column, height * width)
        # One entry behind the pixels stands for everything outside.
        flat = jnp.pad(solid.reshape(solid.shape[0], -1), ((0, 0), (0, 1)), constant_values=True)
        found = jnp.take_along_axis(flat, index.reshape(index.shape[0], -1), axis=1)
        return votes + found.reshape(votes.shape).astype(votes.dtype), None

    views = tuple(jnp.moveaxis(a, 1, 0) for a in (solid, K, invert_rigid(c2w)))
    votes, _ = jax.lax.scan(count, jnp.zeros(t.shape, jnp.int8), views)
    best = votes == votes.max(-1, keepdims=True)
    enters = jnp.where(best, t, jnp.inf).min(-1) - step / 2
    leaves = jnp.where(best, t, -jnp.inf).max(-1) + step / 2
    return enters, leaves
