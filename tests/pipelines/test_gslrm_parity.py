"""The whole training step of GS-LRM against measured renders, losses and gradients.

Those were drawn with the CUDA rasterizer's semantics, so its oracle stands in for ours here.
"""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mouselift_jax.geometry.camera import intrinsics, invert_rigid
from mouselift_jax.models.gslrm import GSLRM, GSLRMConfig, param_shapes
from mouselift_jax.models.vgg import VGG19
from mouselift_jax.render import rasterize
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.training.losses import LossConfig, image_loss
from mouselift_jax.weights.rules import apply_rules, invert_rules
from mouselift_jax.weights.tables.gslrm import RULES, config_from_source
from tests.models.test_vgg import vgg19_weights
from tests.pipelines.cuda_oracle import ambiguous_pixels, rasterize_cuda

pytestmark = pytest.mark.shared
LOSS = LossConfig(l2=1.0, perceptual=0.5, ssim=0.2, l2_warmup_steps=500)


@pytest.fixture(scope="module")
def case(shared):
    folder = shared / "goldens" / "gslrm"
    io, e2e = (load_file(folder / f"tiny_{n}.safetensors") for n in ("io", "e2e"))
    state = load_file(folder / "tiny_state_dict.safetensors")
    upstream = json.loads((folder / "meta.json").read_text())["config"]
    config = GSLRMConfig(**config_from_source({k: v.shape for k, v in state.items()}, upstream))
    params = apply_rules(RULES, state, param_shapes(config))
    f = io["fxfycxcy"]
    K = np.float32(intrinsics(f[..., 0], f[..., 1], f[..., 2], f[..., 3]))
    target = np.moveaxis(e2e["target"], 2, -1)
    return {"config": config, "params": params, "K": K, "c2w": io["c2w"], "target": target} | {
        "e2e": e2e
    }


def each_view(f, gaussians, K, c2w):
    """[B,V,...] of `f(means, quats, scales, opacities, sh, w2c, K)`, in float64."""
    a = gaussians.activate()
    sets = [jnp.asarray(x, jnp.float64) for x in (a.means, a.quats, a.scales, a.opacities, a.sh)]
    w2c = jnp.asarray(invert_rigid(jnp.asarray(c2w)), jnp.float64)

    def sample(inputs):
        *g, w2c, K = inputs
        return jax.lax.map(lambda camera: f(*g, *camera), (w2c, K))

    return jax.lax.map(sample, (*sets, w2c, jnp.asarray(K, jnp.float64)))


def render(gaussians, K, c2w, size=32):
    """Pictures [B,V,H,W,3], as the CUDA code draws them."""
    white = jnp.ones(3, jnp.float64)
    return each_view(lambda *a: rasterize_cuda(*a, size, size, white), gaussians, K, c2w)


def ambiguous(gaussians, K, c2w, size=32):
    """Pixels [B,V,H,W] where a float32 program may decide otherwise."""

    def one(means, quats, scales, opacities, sh, w2c, K):
        del sh
        return ambiguous_pixels(means, quats, scales, opacities, w2c, K, size, size)

    return each_view(one, gaussians, K, c2w)


def relative(got, want):
    return np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want)


def test_renders_and_rasterizer_gradients_equal_the_measured_ones(case):
    e2e = case["e2e"]
    g = Gaussians(
        means=e2e["gs.xyz"],
        quats=e2e["gs.rotation"],
        log_scales=e2e["gs.scaling"],
        opacity_logits=e2e["gs.opacity"][..., 0],
        sh=e2e["gs.features_dc"],
    )
    g = jax.tree.map(jnp.asarray, g)
    weight = np.moveaxis(e2e["raster.weight"], 2, -1)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):

        def weighed(g):
            pictures = render(g, case["K"], case["c2w"])
            return (pictures * weight).sum(), pictures

        (_, pictures), grads = jax.jit(jax.value_and_grad(weighed, has_aux=True))(g)
        doubt = np.asarray(jax.jit(ambiguous)(g, case["K"], case["c2w"]))
    want = np.moveaxis(e2e["render"], 2, -1)
    # The measured pictures are float32's. Where that may decide otherwise (alpha near 1/255, T near
    # 1e-4, a centre or radius on the edge of a tile, depths nearly equal) one Gaussian comes or
    # goes; everywhere else only rounding is between them.
    apart = np.abs(np.asarray(pictures) - want).max(-1)
    assert doubt.mean() < 0.03
    assert apart[~doubt].max() < 5e-6
    assert apart[doubt].max() < 4e-3
    names = {"means": "xyz", "quats": "rotation", "log_scales": "scaling", "sh": "features_dc"}
    for ours, theirs in (names | {"opacity_logits": "opacity"}).items():
        expected = e2e[f"raster.grad.{theirs}"].reshape(getattr(grads, ours).shape)
        assert relative(getattr(grads, ours), expected) < 1e-3, ours

    # Ours draws tails that the CUDA code cuts at tile squares: a few pixels, by at most 5e-3.
    a = g.activate()
    for name in ("tiled", "warp") if importlib.util.find_spec("warp") else ("tiled",):
        ours = rasterize(
            a.means, a.quats, a.scales, a.opacities, a.sh, invert_rigid(jnp.asarray(case["c2w"])),
            case["K"], 32, 32, sh_degree=0, background=jnp.ones(3), implementation=name,
        ).rgb  # fmt: skip
        apart = np.abs(ours - want).max(-1)
        assert apart.max() < 5e-3 and (apart > 1e-4).mean() < 0.01, name


def test_loss_and_every_gradient_equal_the_measured_ones(case):
    e2e, images = case["e2e"], case["target"][..., :3]
    model, vgg = GSLRM(case["config"]), vgg19_weights()

    def loss(params, vgg, step):
        nets = {"perceptual": lambda a, b: VGG19().apply({"params": vgg}, a, b)}
        g = model.apply({"params": params}, images[:, :2], case["K"][:, :2], case["c2w"][:, :2])
        pictures = render(g, case["K"], case["c2w"]).astype(jnp.float32)
        return image_loss(pictures, jnp.asarray(images), LOSS, networks=nets, step=step)

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        run = jax.jit(jax.value_and_grad(loss, has_aux=True))
        for prefix, step in (("post_warmup", 1000), ("l2_warmup", 10)):
            (total, terms), grads = run(case["params"], vgg, step)
            assert float(total) == pytest.approx(e2e[f"{prefix}.loss"][0], rel=1e-4)
            assert float(terms["psnr"]) == pytest.approx(e2e[f"{prefix}.psnr"][0], rel=1e-4)
            for name in ("l2", "ssim") + ("perceptual",) * (step >= 500):
                want = e2e[f"{prefix}.{name}_loss"][0]
                assert float(terms[name]) == pytest.approx(want, rel=1e-4), name
            for name, got in invert_rules(RULES, jax.tree.map(np.asarray, grads)).items():
                assert relative(got, e2e[f"{prefix}.grad.{name}"]) < 1e-3, name
