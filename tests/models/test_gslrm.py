"""GS-LRM against measured intermediates, its manifest, and the properties that define it."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mouselift_jax.errors import CheckpointError, ConfigError, ShapeError
from mouselift_jax.geometry.camera import Camera, intrinsics
from mouselift_jax.geometry.rig import turntable
from mouselift_jax.models import gslrm as lib
from mouselift_jax.models.gslrm import GSLRM, GSLRMConfig
from mouselift_jax.models.layers import LOGICAL_AXES
from mouselift_jax.splats.sh import C0
from mouselift_jax.weights.rules import apply_rules, invert_rules, match
from mouselift_jax.weights.tables.gslrm import RULES, config_from_source

TINY = GSLRMConfig(width=32, head_dim=16, n_layers=2, patch_size=4, remat="none")


def views(n=3, size=16, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.random((batch, n, size, size, 3)), jnp.float32)
    K = np.broadcast_to(
        intrinsics(1.1 * size, 1.2 * size, size / 2, size / 2 + 1), (batch, n, 3, 3)
    )
    c2w = np.broadcast_to(turntable(n, elevation_deg=10.0).c2w, (batch, n, 4, 4))
    return images, jnp.asarray(K, jnp.float32), jnp.asarray(c2w, jnp.float32)


def init(config, inputs, seed=0):
    return nn.meta.unbox(jax.jit(GSLRM(config).init)(jax.random.key(seed), *inputs))["params"]


def run(config, params, inputs):
    return jax.jit(GSLRM(config).apply)({"params": params}, *inputs)


# --- against the shared folder ------------------------------------------------------------------


@pytest.fixture(scope="module")
def parity(shared):
    folder = shared / "goldens" / "gslrm"
    state = load_file(folder / "tiny_state_dict.safetensors")
    io = load_file(folder / "tiny_io.safetensors")
    upstream = json.loads((folder / "meta.json").read_text())["config"]
    return state, io, upstream


def parity_inputs(io):
    f = io["fxfycxcy"]
    K = intrinsics(f[..., 0], f[..., 1], f[..., 2], f[..., 3])
    images = np.moveaxis(io["image"][:, :, :3], 2, -1)
    return tuple(jnp.asarray(x, jnp.float32) for x in (images, K, io["c2w"]))


def parity_run(parity, replaced=None, **changes):
    state, io, upstream = parity
    state = state | (replaced or {})
    config = GSLRMConfig(**config_from_source({k: v.shape for k, v in state.items()}, upstream))
    config = dataclasses.replace(config, **changes)
    params = apply_rules(RULES, state, lib.param_shapes(config))
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(functools.partial(GSLRM(config).apply, mutable=["intermediates"]))
        return apply({"params": params}, *parity_inputs(io))


def close(got, want, tolerance=2e-5):
    want = np.asarray(want)
    np.testing.assert_allclose(
        np.asarray(got), want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max())
    )


def compare_gaussians(gaussians, io, prefix):
    close(gaussians.means, io[f"{prefix}.xyz"])
    close(gaussians.sh, io[f"{prefix}.features"])
    if f"{prefix}.scaling" not in io:
        return
    close(gaussians.log_scales, io[f"{prefix}.scaling"])
    close(gaussians.quats, io[f"{prefix}.rotation"])
    close(gaussians.opacity_logits, io[f"{prefix}.opacity"][..., 0])
    a = gaussians.activate()
    close(a.scales, io[f"{prefix}.act_scaling"])
    close(a.quats, io[f"{prefix}.act_rotation"])
    close(a.opacities, io[f"{prefix}.act_opacity"][..., 0])


@pytest.mark.shared
def test_every_intermediate_equals_the_measured_one(parity):
    gaussians, state = parity_run(parity)
    io = parity[1]
    named = {k: v[0] for k, v in state["intermediates"].items() if isinstance(v, tuple)}
    compare_gaussians(gaussians, io, "fp32")
    close(jnp.moveaxis(named["posed_images"], -1, 2), io["fp32.posed_images"])
    close(named["patch_tokens"].reshape(6, 16, 64), io["fp32.patch_tokens"])
    for name in ("tokens_in_ln", "decoder_raw", "upsampler_raw", "raw_params"):
        close(named[name], io[f"fp32.{name}"])
    layers = state["intermediates"]["transformer_layers"]
    for i in range(2):
        for ours, theirs in (("block", ""), ("block_attn", "_attn"), ("block_mlp", "_mlp")):
            close(layers[ours][0][i], io[f"fp32.block{i}{theirs}"])
    rays = lib.camera_rays(*parity_inputs(io)[1:], 32, 32)
    for got, name in zip(rays, ("ray_o", "ray_d"), strict=True):
        close(jnp.moveaxis(got, -1, 2), io[f"fp32.{name}"])
    pictures = lib.unpatchify(gaussians.means[:, 2:], 3, 32, 32, 8)
    close(jnp.moveaxis(pictures, -1, 2), io["fp32.pixelalign_xyz"])


@pytest.mark.shared
@pytest.mark.parametrize(
    "prefix,changes",
    [
        ("clip", {"clip_means": True}),
        ("std_plucker", {"ray_embed": "plucker", "depth": "range"}),
        ("aug_plucker", {}),
        ("refsrc", {}),
        ("sh1", {}),
    ],
)
def test_every_branch_equals_the_measured_one(parity, prefix, changes):
    state, io, upstream = parity
    upstream = json.loads(json.dumps(upstream))
    model = upstream["model"]
    if prefix == "aug_plucker":
        model |= {"use_custom_plucker": False, "use_aug_plucker": True}
    model["add_refsrc_marker"] = prefix == "refsrc"
    model["gaussians"]["sh_degree"] = int(prefix == "sh1")
    own = {k.split(".param.")[1]: v for k, v in io.items() if k.startswith(f"{prefix}.param.")}
    gaussians, named = parity_run((state, io, upstream), own, **changes)
    close(named["intermediates"]["raw_params"][0], io[f"{prefix}.raw_params"])
    close(
        jnp.moveaxis(named["intermediates"]["posed_images"][0], -1, 2), io[f"{prefix}.posed_images"]
    )
    if prefix == "sh1":
        gaussians = dataclasses.replace(gaussians, sh=gaussians.sh[..., :1, :])
    compare_gaussians(gaussians, io, prefix)


@pytest.mark.shared
def test_half_precision_is_as_near_to_float32_as_the_measured_one(parity):
    gaussians, _ = parity_run(parity, dtype="bfloat16")
    io = parity[1]
    ours = np.abs(gaussians.means - io["fp32.xyz"]).max()
    theirs = np.abs(io["bf16.xyz"] - io["fp32.xyz"]).max()
    assert ours <= theirs
    assert gaussians.means.dtype == jnp.float32


@pytest.mark.shared
def test_the_full_network_has_the_manifests_tensors(shared):
    rows = [r.split("\t") for r in (shared / "spec/gslrm_keys.tsv").read_text().splitlines()[1:]]
    shapes = {r[0]: tuple(json.loads(r[1])) for r in rows}
    config = GSLRMConfig(**config_from_source(shapes))
    assert config == GSLRMConfig()
    source = {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}
    pairs = match(RULES, source, lib.param_shapes(config))
    assert len(pairs.moves) == 151 and len(pairs.ignored) == 32


# --- without it -------------------------------------------------------------------------------


def test_the_full_network_has_303_565_824_parameters():
    assert lib.n_params(GSLRMConfig()) == 303_565_824


def test_flops_of_the_published_sizes():
    for n_views, size, teraflops in ((6, 512, 74), (4, 512, 36), (5, 384, 20), (1, 512, 4.1)):
        assert lib.forward_flops(GSLRMConfig(), n_views, size, size) / 1e12 == pytest.approx(
            teraflops, rel=0.02
        )


def test_gaussians_are_ordered_tokens_then_patches_and_lie_on_their_rays():
    images, K, c2w = views()
    g = run(TINY, init(TINY, (images, K, c2w)), (images, K, c2w))
    assert g.means.shape == (2, 2 + 3 * 16 * 16, 3)
    ray_o, ray_d = lib.camera_rays(K, c2w, 16, 16)
    means = lib.unpatchify(g.means[:, 2:], 3, 16, 16, 4)
    r = means - ray_o
    along = (r * ray_d).sum(-1, keepdims=True)
    np.testing.assert_allclose(r, along * ray_d, atol=1e-5)
    nearest = -(ray_o * ray_d).sum(-1, keepdims=True)
    assert np.abs(along - nearest).max() <= 1.8 + 1e-5
    # pixel (row 5, column 6) of view 1 is row 1, column 2 of patch (1, 1)
    flat = 2 + 1 * 256 + (1 * 4 + 1) * 16 + 1 * 4 + 2
    np.testing.assert_array_equal(g.means[:, flat], means[:, 1, 5, 6])
    assert float(g.log_scales.max()) <= -1.2


def test_permuting_the_views_permutes_the_gaussians():
    inputs = views()
    params = init(TINY, inputs)
    order = np.array([2, 0, 1])
    whole, moved = (run(TINY, params, x) for x in (inputs, [x[:, order] for x in inputs]))
    want = whole.means[:, 2:].reshape(2, 3, -1, 3)[:, order].reshape(2, -1, 3)
    np.testing.assert_allclose(moved.means[:, 2:], want, atol=2e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "block"},
        {"remat": "dots"},
        {"remat": "attention"},
        {"token_multiple": 32},
        {"attention": "blocked"},
        {"attention": "chunked"},
    ],
)
def test_memory_options_change_neither_values_nor_gradients(changes):
    inputs = views(n=2, size=8, batch=1)
    params = init(TINY, inputs)

    def grads(config):
        def loss(p):
            g = GSLRM(config).apply({"params": p}, *inputs)
            return (g.means**2).sum() + g.sh.sum() + (g.quats * 0.3).sum()

        with jax.default_matmul_precision("highest"):
            return jax.jit(jax.grad(loss))(params)

    want, got = grads(TINY), grads(dataclasses.replace(TINY, **changes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), want, got)


def test_bfloat16_keeps_rays_depths_and_gaussians_in_float32():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    inputs = views(n=2, size=8, batch=1)
    params = init(config, inputs)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    g = run(config, params, inputs)
    assert {x.dtype for x in jax.tree.leaves(g)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(lambda p: GSLRM(config).apply({"params": p}, *inputs))(params))
    assert "bf16" in text


def test_raw_channels_are_not_rounded_to_the_dtype_of_the_layers():
    inputs = views()
    params = init(TINY, inputs)
    model = GSLRM(dataclasses.replace(TINY, dtype="bfloat16"))
    _, seen = model.apply({"params": params}, *inputs, mutable=["intermediates"])
    for name in ("decoder_raw", "upsampler_raw"):
        raw = seen["intermediates"][name][0]
        assert raw.dtype == jnp.float32
        assert (raw != raw.astype(jnp.bfloat16)).mean() > 0.9


def test_initial_weights_follow_the_recipe():
    config = dataclasses.replace(TINY, width=128, head_dim=64)
    params = init(config, views(n=1, size=8, batch=1))
    kernel = params["transformer_layers"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (2, 128, 512) and abs(float(kernel.std()) - 0.02) < 5e-4
    assert abs(float(params["gaussian_position_embeddings"].std()) - 0.02) < 5e-3
    assert float(params["input_layer_norm"]["scale"].min()) == 1.0
    assert not np.allclose(kernel[0], kernel[1])


def test_every_parameter_names_its_axes():
    shapes = jax.eval_shape(GSLRM(TINY).init, jax.random.key(0), *views(n=1, size=8, batch=1))
    boxed = jax.tree.leaves(
        shapes["params"], is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    for leaf in boxed:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == len(leaf.value.shape)
        assert set(leaf.names) - {None} <= set(LOGICAL_AXES), leaf.names


def test_wrong_sizes_and_names_are_errors():
    images, K, c2w = views(n=1, size=18)
    with pytest.raises(ShapeError, match="multiples of 4"):
        GSLRM(TINY).init(jax.random.key(0), images, K, c2w)
    with pytest.raises(ConfigError, match="multiple of head_dim"):
        GSLRMConfig(width=100)
    with pytest.raises(ConfigError, match="unknown remat"):
        init(dataclasses.replace(TINY, remat="blocks"), views(n=1, size=8))


# --- against a torch oracle ---------------------------------------------------------------------


@pytest.mark.torch
def test_values_gradients_and_names_equal_a_torch_oracle():
    torch = pytest.importorskip("torch")
    from tests.models.gslrm_oracle import TorchGSLRM

    torch.manual_seed(0)
    oracle = TorchGSLRM()
    for p in oracle.parameters():  # large enough to reach the clamps
        p.data = torch.randn_like(p) * (0.3 if p.ndim > 1 else 0.2) + (p.ndim == 1)
    source = {k: v.detach().numpy() for k, v in oracle.state_dict().items()}
    stated = {"transformer": {"d_head": 16}}
    config = GSLRMConfig(**config_from_source({k: v.shape for k, v in source.items()}, stated))
    assert config == dataclasses.replace(TINY, remat="block")
    params = apply_rules(RULES, source, lib.param_shapes(config))
    inputs = views()
    want = oracle(*(torch.from_numpy(np.array(x)) for x in inputs))
    weights = {k: torch.randn(v.shape) for k, v in want.items()}
    sum((want[k] * weights[k]).sum() for k in want).backward()

    def loss(p):
        g = GSLRM(config).apply({"params": p}, *inputs)
        return sum((getattr(g, k) * w.numpy()).sum() for k, w in weights.items()), g

    with jax.default_matmul_precision("highest"):
        (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for name, value in want.items():
        close(getattr(got, name), value.detach().numpy())
    ours = invert_rules(RULES, jax.tree.map(np.asarray, grads))
    for name, p in oracle.named_parameters():
        error = np.linalg.norm(ours[name] - p.grad.numpy()) / np.linalg.norm(p.grad.numpy())
        assert error < 1e-4, name


@pytest.mark.parametrize(
    "change,said",
    [
        ({"transformer": {"n_layer": 3}}, "n_layers"),
        ({"hard_pixelalign": False}, "hard_pixelalign"),
        ({"use_aug_plucker": True}, "use_aug_plucker"),
        ({"transformer": {"d_head": 24}}, "does not divide"),
    ],
)
def test_a_config_that_contradicts_the_checkpoint_is_an_error(change, said):
    shapes = {k: v.shape for k, v in invert_rules(RULES, zeros(TINY)).items()}
    with pytest.raises(ConfigError, match=said):
        config_from_source(shapes, change)


def test_another_networks_tensors_are_an_error():
    with pytest.raises(CheckpointError, match="not a GS-LRM"):
        config_from_source({"conv_in.weight": (320, 4, 3, 3)})


def zeros(config):
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), lib.param_shapes(config))


@pytest.mark.parametrize(
    "change",
    [
        {"depth": "range", "ray_embed": "plucker", "depth_near": 1.0, "depth_far": 5.0},
        {"depth": "around_origin", "ray_embed": "plucker"},
    ],
)
def test_depths_stay_within_their_range(change):
    config, inputs = dataclasses.replace(TINY, **change), views(n=1, size=8, batch=1)
    params = jax.tree.map(lambda x: x * 50, init(config, inputs))
    g = run(config, params, inputs)
    away = np.linalg.norm(g.means[:, 2:] - inputs[2][:, 0, None, :3, 3], axis=-1)
    low, high = (1.0, 5.0) if config.depth == "range" else (2.7 - 1.8, 2.7 + 1.8)
    assert low - 1e-4 <= away.min() < away.max() <= high + 1e-4


def test_log_scales_stay_within_their_bounds():
    config = dataclasses.replace(TINY, min_log_scale=-3.0, max_log_scale=-2.0, log_scale_bias=-2.5)
    inputs = views(n=1, size=8, batch=1)
    g = run(config, jax.tree.map(lambda x: x * 50, init(config, inputs)), inputs)
    assert float(g.log_scales.min()) == -3.0 and float(g.log_scales.max()) == -2.0


def test_the_pixel_skip_starts_as_the_pictures_colors_on_a_transparent_white():
    config, inputs = dataclasses.replace(TINY, pixel_skip=True), views(n=1, size=8, batch=1)
    inputs = (inputs[0].at[..., 0, :].set(1.0).at[..., 1, :].set(0.2), *inputs[1:])
    params = jax.tree.map(jnp.zeros_like, init(config, inputs))
    shape = params["pixel_skip"]["kernel"].shape
    params["pixel_skip"]["kernel"] = lib.skip_init(jax.random.key(0), shape)
    g = run(config, params, inputs)
    colors = lib.unpatchify(0.5 + C0 * g.sh[:, 2:, 0], 1, 8, 8, 4)
    np.testing.assert_allclose(colors, inputs[0], atol=1e-6)
    opacities = lib.unpatchify(g.activate().opacities[:, 2:, None], 1, 8, 8, 4)
    assert opacities[..., 0, :].max() < 0.01 < 0.6 < opacities[..., 1, :].min()


def test_with_an_animal_share_only_the_animal_has_tokens_and_gaussians():
    config = dataclasses.replace(TINY, animal_share=0.25, depth="hull")
    images, K, c2w = views(n=2, size=16, batch=1)
    images = jnp.ones_like(images).at[:, :, 4:8, 4:8].set(0.3).at[:, :, 5, 5].set(1.0)
    params = init(TINY, (images, K, c2w))  # weights do not depend on the share
    g = run(config, params, (images, K, c2w))
    assert g.means.shape == (1, 2 + 2 * 4 * 16, 3)  # a quarter of 32 patches
    seen = np.asarray(g.activate().opacities[0, 2:]).reshape(8, 16) > 1e-6
    assert seen[:2].sum() == 2 * 15 and not seen[2:].any()  # one patch a view, one pixel white
    more = run(dataclasses.replace(config, animal_share=0.5), params, (images, K, c2w))
    assert more.means.shape[1] == 2 + 2 * 8 * 16


def test_the_hulls_depth_lies_inside_the_other_views_silhouettes():
    config = dataclasses.replace(TINY, depth="hull")
    images, K, c2w = views(n=3, size=32, batch=1)
    images = jnp.ones_like(images).at[:, :, 12:20, 12:20].set(0.3)
    g = run(config, init(config, (images, K, c2w)), (images, K, c2w))
    means = lib.unpatchify(g.means[:, 2:], 3, 32, 32, 4)[0, :, 13:19, 13:19].reshape(-1, 3)
    camera = jnp.concatenate([means, jnp.ones_like(means[:, :1])], -1) @ jnp.linalg.inv(c2w[0]).mT
    pixels = camera[..., :3] @ K[0].mT
    xy = pixels[..., :2] / pixels[..., 2:]
    assert float(xy.min()) > 12 - 2.5 and float(xy.max()) < 20 + 2.5


def test_features_are_one_vector_a_sample_beside_the_same_gaussians():
    inputs = views(n=2, size=8, batch=2)
    params = init(TINY, inputs)
    plain = GSLRM(TINY).apply({"params": params}, *inputs)
    gaussians, features = GSLRM(TINY).apply({"params": params}, *inputs, features=True)
    assert features.shape == (2, TINY.width) and features.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, plain, gaussians)
    assert np.abs(features[0] - features[1]).max() > 1e-4  # of the sample


def test_gaussians_outside_of_an_input_picture_are_transparent():
    images, K, c2w = views(n=2, size=8, batch=1)
    K = jnp.asarray(K) * jnp.float32([[8, 1, 1], [1, 8, 1], [1, 1, 1]])  # a narrow picture
    params = init(TINY, (images, K, c2w))
    config = dataclasses.replace(TINY, shared_volume=True)
    plain = GSLRM(TINY).apply({"params": params}, images, K, c2w)
    kept = GSLRM(config).apply({"params": params}, images, K, c2w)
    np.testing.assert_array_equal(kept.means, plain.means)
    inside = np.ones(plain.means.shape[1], bool)
    for v in range(2):
        camera = Camera(np.asarray(K[0, v]), np.asarray(c2w[0, v]), 8, 8)
        xy, depth = camera.project(np.asarray(plain.means[0]))
        inside &= ((xy >= 0) & (xy <= 8)).all(-1) & (depth > 0)
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_array_equal(kept.opacity_logits[0][inside], plain.opacity_logits[0][inside])
    assert (np.asarray(kept.opacity_logits[0])[~inside] == -20).all()
