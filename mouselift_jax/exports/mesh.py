"""A mesh from Gaussians by fusing rendered depth; Open3D does the fusion (extra [mesh]).

Splats are no surface: where they are hazy the mesh has holes or bumps, thin parts (tail, whiskers)
come out thick or vanish, and colours are baked from one direction. Good enough to look at and to
measure coarsely, not a scan.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mouselift_jax.errors import BackendError, ConfigError, LayoutError, MissingExtraError
from mouselift_jax.files import atomic_path, check_replaceable
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import AXES

ELEVATIONS_DEG = (-50.0, -15.0, 20.0, 60.0)  # rings of the depth cameras
VIEWS_PER_RING = 10
MIN_ALPHA = 0.5  # depth counts where at least this much is covered
SUFFIXES = (".ply", ".obj", ".glb")


def fuse_mesh(gaussians: Gaussians, *, size: int = 256, cells: int = 160) -> object:
    """A triangle mesh (open3d.geometry.TriangleMesh) in scene units.

    Args:
        gaussians: one set, unbatched.
        size: side of the depth pictures, pixels.
        cells: grid cells along each side of a cube as large as the object's diagonal.

    Raises:
        MissingExtraError: Open3D is not installed.
        LayoutError: the Gaussians enclose no surface.
    """
    means = np.asarray(gaussians.means)
    if not len(means):
        raise LayoutError(
            "the Gaussians enclose no surface",
            expected="some Gaussians",
            found=0,
            fix="--config.filter=none keeps all that the network predicts; train longer",
        )
    try:
        import open3d as o3d
    except ImportError as error:
        raise MissingExtraError("open3d", "mesh", "a mesh") from error
    from mouselift_jax.render import render

    low, high = np.percentile(means, (2, 98), axis=0)
    centre, diagonal = (low + high) / 2, float(np.linalg.norm(high - low)) * 1.3
    cell = diagonal / cells
    # (Open3D's ScalableTSDFVolume stayed empty on depth that the uniform one fuses well.)
    volume = o3d.pipelines.integration.UniformTSDFVolume(
        length=diagonal,
        resolution=cells,
        sdf_trunc=4 * cell,
        color_type=o3d.pipelines.integration.TSDFVolumeColorType.RGB8,
        origin=np.asarray(centre - diagonal / 2, np.float64),
    )
    for cameras in _rings(centre, diagonal, size):
        out = render(gaussians, cameras, background=(0, 0, 0))
        rgb, alpha, depth = (np.asarray(x) for x in (out.rgb, out.alpha, out.depth))
        for v in range(len(rgb)):
            solid = alpha[v, ..., 0] > MIN_ALPHA
            weight = np.maximum(alpha[v], 1e-6)
            colour = (np.clip(rgb[v] / weight, 0, 1) * 255).astype(np.uint8)
            distance = np.where(solid, depth[v, ..., 0] / weight[..., 0], 0).astype(np.float32)
            pair = o3d.geometry.RGBDImage.create_from_color_and_depth(
                o3d.geometry.Image(np.ascontiguousarray(colour)),
                o3d.geometry.Image(distance),
                depth_scale=1.0,
                depth_trunc=100.0,
                convert_rgb_to_intensity=False,
            )
            K = np.asarray(cameras.K[v], float)
            lens = o3d.camera.PinholeCameraIntrinsic(
                size, size, K[0, 0], K[1, 1], K[0, 2] - 0.5, K[1, 2] - 0.5
            )
            volume.integrate(pair, lens, np.linalg.inv(np.asarray(cameras.c2w[v], float)))
    mesh = volume.extract_triangle_mesh()
    if len(mesh.triangles) == 0:
        raise LayoutError(
            "the Gaussians enclose no surface",
            found=f"{len(means)} Gaussians",
            fix="they are too transparent or too few; look at them with `view`",
        )
    return _largest_piece(mesh)


def _rings(centre: np.ndarray, diagonal: float, size: int) -> list[Camera]:
    focal = size / 2 / np.tan(np.radians(25))
    rings = []
    for i, elevation in enumerate(ELEVATIONS_DEG):
        azimuths = 360.0 * (np.arange(VIEWS_PER_RING) + i / 2) / VIEWS_PER_RING
        ring = rig_from_angles(azimuths, elevation, 1.4 * diagonal, focal, size)
        c2w = np.array(ring.c2w)
        c2w[:, :3, 3] += centre
        rings.append(Camera(ring.K, c2w, size, size))
    return rings


def _largest_piece(mesh: object) -> object:
    """Drop the crumbs: pieces with less than a twentieth of the triangles of the largest."""
    labels, counts, _ = mesh.cluster_connected_triangles()
    labels, counts = np.asarray(labels), np.asarray(counts)
    mesh.remove_triangles_by_mask(counts[labels] < counts.max() / 20)
    mesh.remove_unreferenced_vertices()
    mesh.compute_vertex_normals()
    return mesh


def save_mesh(
    path: str | Path,
    gaussians: Gaussians,
    *,
    axes: str = "opencv",
    scale: float = 1.0,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Fuse and write a mesh, whole or not at all.

    Args:
        path: .ply, .obj or .glb.
        gaussians: one set, unbatched.
        axes: a key of `splats.ply.AXES`.
        scale: factor from scene units to the file's.
        overwrite: replace a file that is there: Open3D's cannot say who wrote them.

    Returns:
        Numbers of vertices and triangles.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            "no such mesh format",
            where=path,
            expected=", ".join(SUFFIXES),
            found=path.suffix,
            fix="name the output *.ply, *.obj or *.glb",
        )
    check_replaceable(path, overwrite=overwrite)
    mesh = fuse_mesh(gaussians)
    import open3d as o3d

    matrix = AXES[axes][0]
    mesh.vertices = o3d.utility.Vector3dVector(np.asarray(mesh.vertices) @ matrix.T * scale)
    if np.linalg.det(matrix) < 0:  # a mirror turns faces inside out
        mesh.triangles = o3d.utility.Vector3iVector(np.asarray(mesh.triangles)[:, ::-1])
    mesh.compute_vertex_normals()
    mesh.triangle_normals = o3d.utility.Vector3dVector()  # no format here keeps them
    with atomic_path(path) as part:
        if path.suffix.lower() == ".glb":  # the older writer's break the format's rules
            tensors = o3d.t.geometry.TriangleMesh.from_legacy(mesh)
            written = o3d.t.io.write_triangle_mesh(str(part), tensors)
        else:
            written = o3d.io.write_triangle_mesh(str(part), mesh)
        if not written:
            raise BackendError(
                "Open3D could not write the mesh",
                where=path,
                fix="another ending (.ply, .obj, .glb), or check the free disk space",
            )
    return len(mesh.vertices), len(mesh.triangles)
