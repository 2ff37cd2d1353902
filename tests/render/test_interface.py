"""What `rasterize` does around its implementations: shapes, types, backgrounds, names, counts."""

import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mouselift_jax
from mouselift_jax import render
from mouselift_jax.errors import BackendError, ShapeError
from mouselift_jax.render import rasterize
from mouselift_jax.render.batching import add_pairs, call_info
from mouselift_jax.render.projection import view_colors
from mouselift_jax.render.rasterize import _check_shapes, default_implementation
from mouselift_jax.render.types import Spec
from tests.render.suite import GAUSSIANS, relative_l2, scene

pytestmark = pytest.mark.any_rasterizer

SIZE = dict(width=5, height=4)
draw = jax.jit(lambda arrays, background: rasterize(**arrays, background=background, **SIZE))


def small(**kwargs) -> dict:
    """Six Gaussians before two cameras of 5 x 4 px."""
    arrays = scene(n=6, **kwargs)
    arrays["K"] = arrays["K"] * np.float32([[0.15], [0.15], [1]])
    return arrays


def test_one_background_for_each_view():
    colors = np.float32([[0, 0.5, 1], [0.25, 0, 0.75]])
    black, found = draw(small(), np.zeros((2, 3), np.float32)), draw(small(), colors)
    light = 1 - np.asarray(black.alpha)
    assert 0.1 < light.min() < 0.9
    np.testing.assert_allclose(
        found.rgb, black.rgb + light * colors[:, None, None], atol=1e-6, rtol=1e-6
    )
    gradient = jax.grad(lambda b: draw(small(), b).rgb[1, ..., 2].sum())(jnp.asarray(colors))
    np.testing.assert_allclose(gradient[1, 2], light[1].sum(), rtol=1e-5)
    assert not np.any(gradient[0]) and not np.any(gradient[1, :2])


def test_leading_dimensions_and_views_in_any_number():
    one, background = small(), np.float32([0.1, 0.2, 0.3])
    arrays = {k: np.broadcast_to(v, (2, 3, *v.shape)) for k, v in one.items()}
    found, expected = draw(arrays, background), draw(one, background)
    assert found.rgb.shape == (2, 3, 2, 4, 5, 3)
    assert found.alpha.shape == found.depth.shape == (2, 3, 2, 4, 5, 1)
    for a, b in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), atol=1e-6)
    assert set(found.info) == {"slabs", "intersections", "culled"}
    assert all(v.shape == () and v.dtype == jnp.int32 for v in found.info.values())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_float32_inside_whatever_it_is_given(dtype):
    """Half precision arrays are taken as the numbers they hold; their gradients come back so."""
    low = {k: jnp.asarray(v, dtype) for k, v in small().items()}
    high = {k: v.astype(jnp.float32) for k, v in low.items()}

    def loss(arrays):
        out = draw(arrays, np.zeros(3, np.float32))
        assert all(a.dtype == jnp.float32 for a in out[:3])
        return jnp.square(out.rgb).sum()

    (value, found), (truth, expected) = (jax.value_and_grad(loss)(a) for a in (low, high))
    assert value == truth
    for k in GAUSSIANS:
        assert found[k].dtype == dtype and relative_l2(found[k], expected[k]) < 0.01, k


def test_render_is_rasterize_for_the_pytrees():
    arrays = small()
    c2w = np.linalg.inv(arrays["w2c"])
    sh = mouselift_jax.splats.sh.rgb_to_sh(arrays["colors"])[:, None]
    gaussians = mouselift_jax.Gaussians(
        arrays["means"], arrays["quats"], np.log(arrays["scales"]),
        np.log(arrays["opacities"] / (1 - arrays["opacities"])), sh,
    )  # fmt: skip
    cameras = mouselift_jax.Camera(arrays["K"], c2w, 5, 4)
    found = jax.jit(lambda g: render.render(g, cameras))(gaussians)
    expected = draw(arrays, np.ones(3, np.float32))
    for a, b in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(quats=np.zeros((6, 3), np.float32)), "quats"),
        (dict(w2c=np.zeros((4, 4), np.float32)), "w2c"),
        (dict(K=np.zeros((3, 3, 3), np.float32)), "K"),
        (dict(colors=np.zeros((6, 1, 3), np.float32)), "colors"),
        (dict(colors=np.zeros((6, 7, 3), np.float32), sh_degree=1), "coefficients"),
        (dict(colors=np.zeros((6, 4, 3), np.float32), sh_degree=2), "coefficients"),
        (dict(size=(0, 4)), "nothing to draw"),
    ],
)
def test_arguments_that_do_not_belong_together(change, words):
    """Tried on the check itself: the tests' type checker would be faster than `rasterize`."""
    options = {"sh_degree": None, "size": (5, 4)}
    options |= {k: v for k, v in change.items() if k in options}
    arrays = small() | {k: v for k, v in change.items() if k not in options}
    with pytest.raises(ShapeError, match=words):
        _check_shapes(arrays, options["sh_degree"], options["size"])


def test_backgrounds_and_near_planes_that_cannot_be():
    with pytest.raises(ShapeError, match="background"):
        rasterize(**small(), **SIZE, background=np.zeros((3, 3), np.float32))
    with pytest.raises(ShapeError, match="near"):
        rasterize(**small(), **SIZE, near=0.0)


def test_names_of_implementations(caplog):
    with pytest.raises(BackendError, match="'tiled'"):
        rasterize(**small(), **SIZE, implementation="tile")
    default_implementation.cache_clear()
    with caplog.at_level(logging.INFO):
        assert {default_implementation("cpu") for _ in range(3)} <= {"warp", "tiled"}
    assert len(caplog.records) == 1 and "rasterizer on cpu" in caplog.text


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_colors_of_coefficients_that_are_not_finite(degree, value):
    """NaN, so that the Gaussian is left out: the clamp at 0 must not hide -inf."""
    arrays = scene(n=3, degree=3)
    arrays["colors"][1, 0, 2] = value

    def colors(means, sh, w2c):
        return view_colors(Spec(5, 4, 0.2, degree), means, sh, w2c)

    rgb, pull = jax.vjp(colors, arrays["means"], arrays["colors"], arrays["w2c"][0])
    assert np.isfinite(rgb).all(1).tolist() == [True, False, True]
    assert all(np.isfinite(a).all() for a in pull(jnp.ones_like(rgb).at[1].set(0)))


def test_counts_stop_where_32_bits_end():
    most = jnp.int32(2**31 - 1)
    assert add_pairs(most - 5, jnp.int32(9)) == most and add_pairs(jnp.int32(3), jnp.int32(4)) == 7
    counts = call_info(jnp.ones(3, jnp.int32), jnp.full(3, 10**9, jnp.int32), jnp.zeros(1))
    assert counts["intersections"] == most


def test_the_example_of_the_document_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "rasterizer.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    exec(compile(example, "docs/rasterizer.md", "exec"), {})
    first, _, last = capsys.readouterr().out.split()[:3]
    assert float(last) < 0.1 * float(first)
