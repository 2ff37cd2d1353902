import dataclasses
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import sph_harm_y

from mouselift_jax.errors import ConfigError, LayoutError, ShapeError
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.splats import load_ply, save_ply
from mouselift_jax.splats.filters import HEAD, FilterConfig, apply_filters, keep_mask
from mouselift_jax.splats.gaussians import concatenate, quat_to_rotation, rotation_to_quat
from mouselift_jax.splats.ply import read_header
from mouselift_jax.splats.sh import eval_sh, rgb_to_sh, sh_basis, sh_to_rgb, sh_transform
from tests.splats.clouds import random_gaussians


def covariances(g):
    _, quats, scales, _, _ = g.activate()
    R = quat_to_rotation(quats)
    return (R * scales[..., None, :] ** 2) @ np.swapaxes(R, -1, -2)


def fields_equal(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def test_activation_in_numpy_and_jax_agree_and_survive_extremes():
    g = random_gaussians()
    g.quats[0] = 0
    g.opacity_logits[:2] = [-200, 200]
    a, b = g.activate(), jax.tree.map(jnp.asarray, g).activate()
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-5)
    np.testing.assert_array_equal(a.quats[0], [1, 0, 0, 0])
    assert a.opacities[0] == 0 and a.opacities[1] == 1


def test_shapes_are_checked():
    g = random_gaussians()
    with pytest.raises(ShapeError, match="do not belong together"):
        dataclasses.replace(g, quats=g.quats[:-1])
    with pytest.raises(ShapeError, match="fits no degree"):
        dataclasses.replace(g, sh=np.zeros((50, 3, 3), np.float32))


def test_sh_basis_spans_the_spherical_harmonics_orthonormally():
    # Quadrature that is exact for products of degree 3.
    z, wz = np.polynomial.legendre.leggauss(8)
    phi = 2 * np.pi * np.arange(16) / 16
    zz, pp = np.meshgrid(z, phi, indexing="ij")
    r = np.sqrt(1 - zz**2)
    d = np.stack([r * np.cos(pp), r * np.sin(pp), zz], -1).reshape(-1, 3)
    w = np.repeat(wz, 16) * 2 * np.pi / 16
    B = sh_basis(3, d)
    np.testing.assert_allclose(np.einsum("n,ns,nt->st", w, B, B), np.eye(16), atol=1e-12)
    for degree in range(4):  # each band lies in the span of scipy's complex harmonics of its degree
        band = B[:, degree**2 : (degree + 1) ** 2]
        Y = np.stack(
            [
                sph_harm_y(degree, m, np.arccos(d[:, 2]), np.arctan2(d[:, 1], d[:, 0]))
                for m in range(-degree, degree + 1)
            ],
            -1,
        )
        captured = np.einsum("n,ns,nm->sm", w, band, Y.conj())
        np.testing.assert_allclose((np.abs(captured) ** 2).sum(-1), 1.0, atol=1e-12)


def test_colours_of_degree_zero_round_trip():
    rgb = np.random.default_rng(0).random((5, 3))
    np.testing.assert_allclose(sh_to_rgb(rgb_to_sh(rgb)), rgb)
    np.testing.assert_allclose(eval_sh(0, rgb_to_sh(rgb)[:, None], np.ones((5, 3))), rgb)


@pytest.mark.parametrize("mirror", [False, True])
def test_turned_colours_and_shapes(mirror):
    rng = np.random.default_rng(0)
    A = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    A *= np.sign(np.linalg.det(A)) * (-1 if mirror else 1)
    d = rng.normal(size=(20, 3))
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    for degree in range(4):
        g = random_gaussians(20, degree)
        h = g.turned(A)
        np.testing.assert_allclose(
            eval_sh(degree, h.sh, d @ A.T), eval_sh(degree, g.sh, d), atol=2e-5
        )
        np.testing.assert_allclose(h.means, g.means @ A.T, atol=1e-5)
        np.testing.assert_allclose(covariances(h), A @ covariances(g) @ A.T, atol=1e-6)
    assert sh_transform(1, np.eye(3)) == pytest.approx(np.eye(4))


def test_similarity_scales_the_ellipsoids():
    g = random_gaussians(degree=1)
    s = Similarity(np.float64(3.0), np.eye(3), np.array([1.0, 2.0, 3.0]))
    h = g.transformed(s)
    np.testing.assert_allclose(covariances(h), 9 * covariances(g), rtol=1e-4)
    np.testing.assert_allclose(h.means, 3 * g.means + [1, 2, 3], rtol=1e-5, atol=1e-6)


def test_quaternions_and_matrices_are_inverse():
    q = random_gaussians().activate().quats
    back = rotation_to_quat(quat_to_rotation(q))
    np.testing.assert_allclose(back * np.sign(back[:, :1]), q * np.sign(q[:, :1]), atol=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_round_trip_is_exact(tmp_path, degree):
    g = random_gaussians(degree=degree)
    save_ply(tmp_path / "a.ply", g, scene_scale=0.0123)
    fields_equal(load_ply(tmp_path / "a.ply"), g)
    header = read_header(tmp_path / "a.ply")
    assert header == {"axes": "opencv", "sh_degree": str(degree), "scene_scale": "0.0123"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
    save_ply(tmp_path / "none.ply", g[:0], axes="opengl")  # a filter may leave nothing
    fields_equal(load_ply(tmp_path / "none.ply"), g[:0])


def test_a_ply_is_the_header_and_the_numbers_that_viewers_read(tmp_path):
    g = random_gaussians(2, degree=1)
    save_ply(tmp_path / "a.ply", g, scene_scale=0.02)
    fields = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    fields += [f"f_rest_{i}" for i in range(9)]
    fields += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    head, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    lines = [line for line in head.decode().splitlines() if not line.startswith("comment ")]
    assert lines == [
        "ply",
        "format binary_little_endian 1.0",
        "element vertex 2",
        *(f"property float {name}" for name in fields),
    ]
    assert b"comment mouselift_jax scene_scale 0.02 scene units per mm\n" in head
    rows = [
        [*g.means[i], 0, 0, 0, *g.sh[i, 0], *g.sh[i, 1:].T.ravel(), g.opacity_logits[i]]
        + [*g.log_scales[i], *g.quats[i]]
        for i in range(2)
    ]
    assert body == b"".join(struct.pack("<26f", *row) for row in rows)


@pytest.mark.parametrize("form", ["ascii", "binary_big_endian"])
def test_ply_of_another_program(tmp_path, form):
    """Other order and types, fields of no interest, a table before and faces behind."""
    g = random_gaussians(3)
    columns = {f"rot_{i}": g.quats[:, i] for i in range(4)}
    columns |= {f"scale_{i}": g.log_scales[:, i] for i in range(3)}
    columns |= {"opacity": g.opacity_logits} | {f"f_dc_{i}": g.sh[:, 0, i] for i in range(3)}
    columns |= dict(zip("xyz", g.means.T, strict=True))
    head = f"ply\r\nformat {form} 1.0\r\ncomment a comment\r\nobj_info by hand\r\n"
    head += "element camera 2\r\nproperty uchar id\r\nelement vertex 3\r\nproperty uchar red\r\n"
    head += "".join(f"property double {name}\r\n" for name in columns)
    head += "element face 1\r\nproperty list uchar int vertex_indices\r\nend_header\r\n"
    rows = np.stack(list(columns.values()), 1).astype(float)
    if form == "ascii":
        body = "7\n8\n" + "".join(f"200 {' '.join(map(repr, r.tolist()))}\n" for r in rows)
        body = (body + "3 0 1 2\n").encode()
    else:
        body = bytes([7, 8]) + b"".join(struct.pack(">B14d", 200, *row) for row in rows)
        body += struct.pack(">B3i", 3, 0, 1, 2)
    (tmp_path / "a.ply").write_bytes(head.encode() + body)
    fields_equal(load_ply(tmp_path / "a.ply"), g)


@pytest.mark.parametrize("axes", ["opengl", "unity", "blender"])
def test_ply_in_other_axes_reads_back_the_same_splats(tmp_path, axes):
    g = random_gaussians(degree=2)
    save_ply(tmp_path / "a.ply", g, axes=axes)
    h = load_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(h.means, g.means, atol=1e-6)
    np.testing.assert_allclose(covariances(h), covariances(g), atol=1e-6)
    np.testing.assert_allclose(h.sh, g.sh, atol=1e-5)


def test_ply_of_another_program_with_zero_padding_is_degree_zero(shared):
    g = load_ply(shared / "goldens/gslrm/tiny_gaussians.ply")
    assert g.sh_degree == 0 and g.n_gaussians > 1000
    kept = apply_filters(g, HEAD)
    fields_equal(kept, load_ply(shared / "goldens/gslrm/tiny_gaussians_filtered.ply"))


def test_bad_ply_files_are_explained(tmp_path):
    g = random_gaussians()
    with pytest.raises(LayoutError, match="no such PLY"):
        load_ply(tmp_path / "none.ply")
    save_ply(tmp_path / "a.ply", g)
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "cut.ply").write_bytes(data[: len(data) // 2])
    (tmp_path / "html.ply").write_bytes(b"<html>404</html>")
    for name in ("cut.ply", "html.ply"):
        with pytest.raises(LayoutError, match="cannot be read"):
            load_ply(tmp_path / name)
    (tmp_path / "mesh.ply").write_bytes(
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
        b"property float z\nend_header\n0 0 0\n"
    )
    with pytest.raises(LayoutError, match="does not hold Gaussians"):
        load_ply(tmp_path / "mesh.ply")
    with pytest.raises(ConfigError, match="did you mean 'unity'"):
        save_ply(tmp_path / "b.ply", g, axes="unty")
    with pytest.raises(ShapeError, match="one set"):
        save_ply(tmp_path / "b.ply", jax.tree.map(lambda x: x[None], g))


def test_filters_drop_what_they_say():
    g = random_gaussians(8)
    g.means[:] = 0
    g.opacity_logits[:] = 3
    g.log_scales[:] = -4
    g.opacity_logits[0] = -10
    g.log_scales[1], g.means[1, 2] = 0, -0.1
    g.log_scales[2], g.means[2, 2] = 0, 0.1  # large but above the floor
    g.means[3] = [0.7, 0.7, -0.7]
    g.means[4, 0] = 0.95
    g.means[5, 2] = -1.1
    g.means[6, 0] = np.nan
    np.testing.assert_array_equal(keep_mask(g, HEAD), [0, 0, 1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(
        keep_mask(g, FilterConfig(None, max_scale=0.5)), [1, 0, 0, 1, 1, 1, 0, 1]
    )


def test_gaussians_concatenate_and_index():
    g = random_gaussians(5)
    both = concatenate([g, g])
    assert both.n_gaussians == 10
    fields_equal(both[5:], g)
