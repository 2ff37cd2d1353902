"""What is deliberately unlike the CUDA rasterizer that made the definition common.

Each test is a row of the table in docs/rasterizer.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.render import rasterize

IMPLEMENTATION = "reference"
_STATIC = ("width", "height", "implementation")
draw = jax.jit(rasterize, static_argnames=_STATIC)  # compiled once for most of the tests


def one(mean=(0, 0, 0), scale=0.2, opacity=1.0, quat=(1, 0, 0, 0), size=(64, 64), dtype=np.float32):
    """A single Gaussian 2.5 units before a camera with 64 px focal length."""
    w2c = np.eye(4, dtype=dtype)
    w2c[2, 3] = 2.5
    K = np.array([[64, 0, size[0] / 2], [0, 64, size[1] / 2], [0, 0, 1]], dtype)
    return dict(
        means=np.array([mean], dtype), quats=np.array([quat], dtype),
        scales=np.broadcast_to(np.array(scale, dtype), (1, 3)).copy(),
        opacities=np.array([opacity], dtype), colors=np.ones((1, 3), dtype),
        w2c=w2c[None], K=K[None], width=size[0], height=size[1], implementation=IMPLEMENTATION,
    )  # fmt: skip


def test_support_is_where_alpha_reaches_the_threshold():
    """The CUDA code cuts at the 16-px tiles that a 3-sigma square touches."""
    arguments = one(opacity=1.0, scale=0.26)
    sigma = np.sqrt((0.26 * 64 / 2.5) ** 2 + 0.3)
    alpha = np.asarray(draw(**arguments).alpha[0, 32, :, 0])
    distance = np.abs(np.arange(64) + 0.5 - 32)
    drawn = np.exp(-0.5 * (distance**2 + 0.25) / sigma**2) >= 1 / 255
    assert (distance[drawn].max() > 3.2 * sigma) and (alpha[drawn] > 0).all()
    assert (alpha[~drawn] == 0).all()


def test_clamped_alpha_has_no_slope():
    """The CUDA code passes the gradient straight through min(0.99, .)."""

    def loss(opacity, **arguments):
        return draw(**{**arguments, "opacities": opacity}).alpha[0, 0, 0, 0]

    arguments = one(size=(1, 1), opacity=1.0)
    opacity = jnp.asarray(arguments.pop("opacities"))
    assert jax.grad(loss)(opacity, **arguments)[0] == 0
    assert jax.grad(loss)(opacity * 0.9, **arguments)[0] > 0.9


@pytest.mark.parametrize("implementation", ["reference", "tiled", "warp"])
def test_slope_outside_the_field_of_view_is_the_true_one(implementation):
    """The CUDA code takes the clamped x/z for a constant: 57 % off in a wide-angle close-up."""
    if implementation == "warp":
        pytest.importorskip("warp")
    arguments = one(mean=(2.3, 0.2, 0), scale=0.6, opacity=0.9)  # x/z = 0.92, the clamp at 0.65
    arguments["implementation"] = implementation
    means = jnp.asarray(arguments.pop("means"))

    def loss(means):
        return (draw(means=means, **arguments).rgb * jnp.arange(64)[:, None]).sum() / 1e3

    gradient = np.asarray(jax.grad(loss)(means))[0]
    for k in (0, 2):  # across the clamp, and along the axis
        step = np.zeros((1, 3), np.float32)
        step[0, k] = 4e-3
        numeric = float(loss(means + step) - loss(means - step)) / 8e-3
        np.testing.assert_allclose(gradient[k], numeric, rtol=0.03, atol=0.05)


def test_quaternions_of_any_norm():
    """The CUDA code takes quaternions as they come, so their norm scales the Gaussian."""
    picture = draw(**one(quat=(0.5, 0.1, -0.3, 0.2), scale=(0.3, 0.1, 0.05))).rgb
    larger = draw(**one(quat=(5, 1, -3, 2), scale=(0.3, 0.1, 0.05))).rgb
    np.testing.assert_allclose(picture, larger, atol=1e-6)


def test_alpha_and_depth_are_outputs_with_gradients():
    """The CUDA code returns the colour and radii only."""
    arguments = one(opacity=0.5)
    means = jnp.asarray(arguments.pop("means"))
    out = draw(means=means, **arguments)
    drawn = np.asarray(out.alpha) > 0
    np.testing.assert_allclose(np.asarray(out.depth)[drawn] / np.asarray(out.alpha)[drawn], 2.5,
                               rtol=1e-5)  # fmt: skip
    slope = jax.grad(lambda m: draw(means=m, **arguments).depth.sum())(means)
    assert slope[0, 2] != 0


def test_close_to_the_cuda_pictures(shared):
    """Pictures of the CUDA code: a few per cent of the pixels differ, by the cut support."""
    with np.load(shared / "goldens" / "golden_raster.npz") as data:
        case = {k.split("/")[1]: data[k] for k in data.files if k.startswith("base/")}
    fx, fy, cx, cy = case["fxfycxcy"]
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)
    quats = case["rotations"]
    np.testing.assert_allclose(np.linalg.norm(quats, axis=1), 1, atol=1e-4)  # CUDA wants them so
    out = rasterize(
        case["means3D"], quats, case["scales"], case["opacities"][:, 0], case["shs"],
        np.linalg.inv(case["c2w"]).astype(np.float32)[None], K[None], int(case["hw"][1]),
        int(case["hw"][0]), sh_degree=0, background=case["bg"], implementation=IMPLEMENTATION,
    )  # fmt: skip
    error = np.abs(np.asarray(out.rgb[0]) - case["image"].transpose(1, 2, 0)).max(-1)
    error = error[~case["ambiguous"]]
    assert error.max() < 5e-3 and (error > 1e-5).mean() < 0.05, (error.max(), (error > 1e-5).mean())
