"""Splats of other programs: applied, read, or refused; what holds no numbers is counted."""

import numpy as np
import pytest

from mouselift_jax.errors import LayoutError
from mouselift_jax.splats import Gaussians, load_ply, save_ply
from mouselift_jax.splats.filters import drawable
from mouselift_jax.splats.gaussians import quat_to_rotation
from mouselift_jax.splats.ply import AXES, read_header
from mouselift_jax.splats.ply_table import write_table
from mouselift_jax.splats.splat_file import load_splat, save_splat
from tests.splats.clouds import random_gaussians


def covariances(g):
    _, quats, scales, _, _ = (np.asarray(x, np.float64) for x in g.activate())
    axes = quat_to_rotation(quats) * scales[:, None]
    return axes @ axes.swapaxes(-1, -2)


def columns(g, **more):
    out = {k: g.means[:, i] for i, k in enumerate("xyz")} | {"opacity": g.opacity_logits}
    out |= {f"f_dc_{i}": g.sh[:, 0, i] for i in range(3)}
    out |= {f"scale_{i}": g.log_scales[:, i] for i in range(3)}
    out |= {f"rot_{i}": g.quats[:, i] for i in range(4)}
    return {k: v for k, v in {**out, **more}.items() if v is not None}


def test_the_filter_of_mip_splatting_is_applied(tmp_path):
    g = random_gaussians(40)
    f = np.random.default_rng(1).uniform(0.001, 0.2, 40)
    write_table(tmp_path / "a.ply", columns(g, filter_3D=f), [])
    got = load_ply(tmp_path / "a.ply").activate()
    f = f.astype(np.float32).astype(np.float64)
    s2 = np.exp(g.log_scales.astype(float)) ** 2
    opacity = 1 / (1 + np.exp(-g.opacity_logits.astype(float)))
    # its get_scaling_with_3D_filter and get_opacity_with_3D_filter
    wide = s2 + f[:, None] ** 2
    np.testing.assert_allclose(got.scales, np.sqrt(wide), rtol=1e-5)
    want = opacity * np.sqrt(s2.prod(1) / wide.prod(1))
    np.testing.assert_allclose(got.opacities, want, rtol=2e-5)


def test_flat_splats_have_a_thin_third_axis(tmp_path):
    g = random_gaussians(20)
    write_table(tmp_path / "a.ply", columns(g, scale_2=None), [])
    back = load_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(back.log_scales[:, :2], g.log_scales[:, :2])
    thin = np.exp(back.log_scales[:, 2] - g.log_scales[:, :2].min(1))
    np.testing.assert_allclose(thin, 1e-3, rtol=1e-5)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_rgb_colours(tmp_path, top):
    g, rgb = random_gaussians(20), np.random.default_rng(0).integers(0, 256, (20, 3))
    rgb[0] = 255
    more = {f"f_dc_{i}": None for i in range(3)}
    more |= {k: rgb[:, i] / 255 * top for i, k in enumerate(("red", "green", "blue"))}
    write_table(tmp_path / "a.ply", columns(g, **more), [])
    colours = load_ply(tmp_path / "a.ply").sh[:, 0] * 0.28209479177387814 + 0.5
    np.testing.assert_allclose(colours, rgb / 255, atol=1e-6)


def test_activated_values_are_noticed(tmp_path):
    g = random_gaussians(60)
    active = g.activate()
    scales = {f"scale_{i}": active.scales[:, i] for i in range(3)}
    for more in (scales | {"opacity": active.opacities}, {"opacity": np.linspace(0, 1, 60)}):
        write_table(tmp_path / "a.ply", columns(g, **more), [])
        with pytest.raises(LayoutError, match="activated"):
            load_ply(tmp_path / "a.ply")


def broken():
    g = random_gaussians(50)
    g.means[5, 0] = np.nan
    g.log_scales[7, 0] = -np.inf
    g.quats[8, 1] = np.inf
    g.sh[9, 0, 2] = np.nan
    g.opacity_logits[10] = np.nan
    g.opacity_logits[11] = -np.inf
    g.opacity_logits[12] = np.inf  # solid, and kept
    return g


@pytest.mark.parametrize("axes", ["opencv", "3dgs"])
def test_every_writer_leaves_out_what_holds_no_numbers_and_counts(tmp_path, axes, caplog):
    g = broken()
    assert drawable(g).sum() == 44
    assert save_ply(tmp_path / "a.ply", g, axes=axes) == 6
    assert "6 of 50" in caplog.text
    back = load_ply(tmp_path / "a.ply")
    assert back.n_gaussians == 44 and drawable(back).all()
    assert back.activate().opacities.max() == 1.0
    assert save_splat(tmp_path / "a.splat", g) == 6
    assert load_splat(tmp_path / "a.splat").n_gaussians == 44


def test_an_infinite_opacity_is_solid_and_nan_rows_survive_reading(tmp_path):
    write_table(tmp_path / "a.ply", columns(broken()), ["mouselift_jax axes unity: x"])
    back = load_ply(tmp_path / "a.ply")
    assert back.n_gaussians == 50 and drawable(back).sum() == 44
    assert np.isfinite(back.opacity_logits[12]) and back.activate().opacities[12] == 1.0


def test_3dgs_axes_are_upright_where_y_points_down(tmp_path):
    """SuperSplat turns a file by half a turn about z: y down in the file is up on the screen."""
    assert np.linalg.det(AXES["3dgs"][0]) == pytest.approx(1)
    on_screen = np.diag([-1.0, -1, 1]) @ AXES["3dgs"][0]
    np.testing.assert_allclose(on_screen @ [0, 0, 1], [0, 1, 0])
    g = random_gaussians(50, degree=2)
    save_ply(tmp_path / "a.ply", g, axes="3dgs")
    h = load_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(h.means, g.means, atol=1e-6)
    np.testing.assert_allclose(covariances(h), covariances(g), atol=1e-6)
    np.testing.assert_allclose(h.sh, g.sh, atol=1e-5)


@pytest.mark.parametrize("comment", ["axes", "", "sh_degree", "sh_degree x", "sh_degree -3",
                                     "scene_scale mm", "scene_scale"])  # fmt: skip
def test_a_malformed_comment_is_an_error_or_nothing(tmp_path, comment):
    write_table(tmp_path / "a.ply", columns(random_gaussians(5)), [f"mouselift_jax {comment}"])
    for read in (load_ply, read_header):
        try:
            read(tmp_path / "a.ply")
        except LayoutError as error:
            assert "header" in str(error)


@pytest.mark.parametrize("size", [1e-6, 4e-4, 1.0, 4e3])
def test_what_the_live_viewer_sends_stays_ellipsoids(size):
    from mouselift_jax.report.live import near_unit_covariances

    g, rng = random_gaussians(500), np.random.default_rng(2)
    scales = np.log(size * rng.lognormal(0, 1, (500, 3)))
    scales[:50, 2] = np.log(size * 1e-5)  # flat
    scales[50:60] -= 9  # tiny
    g = Gaussians(g.means, g.quats, scales.astype(np.float32), g.opacity_logits, g.sh)
    unit, sent = near_unit_covariances(g)
    as_sent = sent.astype(np.float16).astype(np.float64)
    assert np.isfinite(as_sent).all() and np.linalg.eigvalsh(as_sent).min() > 0
    s = np.exp(scales)
    fat = (s.max(1) / s.min(1) < 15) & (s.max(1) > unit / 30)
    assert fat.sum() > 50
    np.testing.assert_allclose(
        sent[fat] * unit**2, covariances(g)[fat], rtol=1e-3, atol=1e-5 * size**2
    )
