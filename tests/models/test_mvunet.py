"""The multi-view UNet against the reference implementation and against diffusers' class."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import ConfigError, ShapeError
from mouselift_jax.models.mvunet import MVUNet, MVUNetConfig
from mouselift_jax.models.unet_blocks import sinusoid
from mouselift_jax.weights.rules import flatten, invert_rules, match
from mouselift_jax.weights.tables import mvunet as table
from tests.models.oracle import TINY_UNET as TINY
from tests.models.oracle import l2, load, manifest, metadata, nhwc, peak, shapes, tensors


def inputs(cfg: MVUNetConfig, batch: int = 1, seed: int = 0) -> tuple:
    rng = np.random.default_rng(seed)
    views, size = cfg.n_views, cfg.sample_size

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return (
        normal(batch, views, size, size, cfg.in_channels),
        jnp.asarray(rng.integers(0, 1000, batch), jnp.int32),
        normal(batch, views, 5, cfg.context_dim),
        normal(batch, views, cfg.class_dim),
    )


@functools.partial(jax.jit, static_argnames=("module", "attention"))
def apply(module, params, args, attention=None, poses=None):
    return module.apply({"params": params}, *args, attention=attention, poses=poses)


def random_params(module: MVUNet, seed: int = 0, **kw) -> dict:
    """Every parameter away from its initial value, so that a mapping mistake shows."""
    rng = np.random.default_rng(seed)
    tree = shapes(module, *inputs(module.config), **kw)
    flat = flatten(tree)

    def leaf(name, shape):
        z = rng.normal(size=shape)
        if name.endswith("scale"):
            return 1 + 0.1 * z
        return 0.1 * z if len(shape) == 1 else z / np.sqrt(np.prod(shape[:-1]))

    values = iter([leaf(name, x.shape).astype(np.float32) for name, x in flat.items()])
    return jax.tree.map(lambda _: jnp.asarray(next(values)), tree)


@pytest.fixture(scope="module")
def golden_case(shared):
    path = shared / "goldens" / "golden_mvunet.safetensors"
    config = MVUNetConfig(**table.config_from_source(json.loads(metadata(path)["config"])))
    module = MVUNet(config)
    x = tensors(path, "inputs.")
    args = (
        jnp.asarray(nhwc(x["sample"]).reshape(2, 6, 8, 8, 8)),
        jnp.asarray(x["timesteps"].reshape(2, 6)[:, 0], jnp.int32),
        jnp.asarray(x["encoder_hidden_states"].reshape(2, 6, 7, 40)),
        jnp.asarray(x["class_labels"].reshape(2, 6, 48)),
    )
    params = load(table.RULES, tensors(path, "params."), module, *args)
    weight = jnp.asarray(nhwc(x["loss_weight"]).reshape(2, 6, 8, 8, 4))
    return path, module, params, args, weight


@pytest.fixture(scope="module")
def golden_run(golden_case):
    """Gradients, outputs and activations of one program: compiling it is nearly all of its time."""
    _, module, params, args, weight = golden_case

    def loss(params, args):
        out, state = module.apply({"params": params}, *args, capture_intermediates=True)
        return jnp.mean(weight * out), (out, state["intermediates"])

    return jax.jit(jax.grad(loss, has_aux=True))(params, args)


@pytest.mark.parametrize("mode", ["sparse", "dense", "none"])
def test_golden_outputs(golden_case, golden_run, mode):
    path, module, params, args, _ = golden_case
    if mode == module.config.attention:
        found = golden_run[1][0]
    else:
        found = jax.jit(lambda p, a: module.apply({"params": p}, *a, attention=mode))(params, args)
    name = "no_mv" if mode == "none" else mode
    expected = nhwc(tensors(path, "outputs.")[name]).reshape(found.shape)
    assert l2(found, expected) < 4e-5
    assert peak(found, expected) < 5e-5


def test_golden_activations(golden_case, golden_run):
    path = golden_case[0]
    found = {k.removesuffix("/__call__"): v[0] for k, v in flatten(golden_run[1][1]).items()}
    for name, expected in tensors(path, "acts.").items():
        ours = name.replace("tb0", "transformer_blocks.0")
        ours = "/".join(ours.split(".")).replace("/0", "_0").replace("/1", "_1")
        ours = ours.replace("/2", "_2").replace("/3", "_3")
        value = found[ours][0] if isinstance(found[ours], tuple) else found[ours]
        if name == "time_embedding":  # computed once an object here
            value = np.repeat(value, 6, axis=0)
        expected = nhwc(expected) if expected.ndim == 4 else expected
        assert l2(value, expected) < 4e-5, name
        assert peak(value, expected) < 1e-4, name


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_golden_gradients(golden_case, golden_run, remat):
    gradients = golden_run[0]
    if remat:
        _, module, params, args, weight = golden_case
        again = module.clone(remat=True)
        loss = lambda p, a: jnp.mean(weight * again.apply({"params": p}, *a))  # noqa: E731
        gradients = jax.jit(jax.grad(loss))(params, args)
    found = invert_rules(table.RULES, gradients)
    expected = tensors(golden_case[0], "grads.")
    assert set(found) == set(expected)
    assert len(found) == 690
    assert max(peak(found[k], expected[k]) for k in expected) < 1e-3


def test_full_size_tree_without_allocation(shared):
    torch_shapes = manifest(shared / "spec" / "mvunet_keys.tsv")
    module = MVUNet()
    tree = shapes(module, *jax.eval_shape(lambda: inputs(MVUNetConfig())))
    pairs = match(table.RULES, torch_shapes, tree)
    assert len(pairs.moves) == 690
    assert sum(x.size for x in jax.tree.leaves(tree)) == 870_184_644
    assert not pairs.ignored


def test_slot_0_is_the_only_hub():
    module = MVUNet(TINY)
    params, args = random_params(module), inputs(TINY)
    base = apply(module, params, args)
    for view in (0, 3):
        moved = args[0].at[0, view].add(1.0)
        change = apply(module, params, (moved, *args[1:])) - base
        changed = np.abs(np.asarray(change)).max(axis=(0, 2, 3, 4)) > 0
        assert changed.tolist() == ([True] * 6 if view == 0 else [i == view for i in range(6)])


def test_slot_0_equals_a_single_view():
    module = MVUNet(TINY)
    params, args = random_params(module), inputs(TINY, batch=2)
    sparse = apply(module, params, args, "sparse")
    none = apply(module, params, args, "none")
    assert peak(sparse[:, 0], none[:, 0]) < 1e-5
    assert peak(sparse[:, 1], none[:, 1]) > 1e-2


def test_against_diffusers():
    """Without sharing between views it is diffusers' own UNet, parameters carried by our table."""
    torch = pytest.importorskip("torch")
    from diffusers import UNet2DConditionModel

    stock = UNet2DConditionModel(
        sample_size=TINY.sample_size,
        in_channels=8,
        block_out_channels=TINY.block_channels,
        attention_head_dim=TINY.heads,
        cross_attention_dim=TINY.context_dim,
        norm_num_groups=TINY.norm_groups,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=TINY.class_dim,
    ).eval()
    config = table.config_from_source(json.loads(stock.to_json_string()))
    assert MVUNetConfig(**{**config, "n_views": 6}) == TINY
    module, args = MVUNet(TINY), inputs(TINY)
    params = random_params(module)
    state = invert_rules(table.RULES, params)
    stock.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()})
    back = load(table.RULES, stock.state_dict(), module, *args)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, back))
    sample, t, prompts, labels = (torch.from_numpy(np.array(a)) for a in args)
    with torch.no_grad():
        expected = stock(
            sample[0].movedim(-1, 1), t.repeat(6), prompts[0], class_labels=labels[0]
        ).sample
    found = apply(module, params, args, "none")
    assert l2(found[0], nhwc(expected.numpy())) < 2e-5


def test_sinusoid_against_diffusers():
    torch = pytest.importorskip("torch")
    from diffusers.models.embeddings import get_timestep_embedding

    t = np.array([0, 1, 41, 999])
    expected = get_timestep_embedding(
        torch.from_numpy(t), 320, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    # float32 angles near 1000 are good to 3e-5 in either implementation
    np.testing.assert_allclose(sinusoid(jnp.asarray(t), 320), expected.numpy(), atol=1e-4)


def test_bfloat16_is_near_float32():
    params, args = random_params(MVUNet(TINY)), inputs(TINY)
    full = apply(MVUNet(TINY), params, args)
    half = apply(MVUNet(TINY, dtype=jnp.bfloat16), params, args)
    assert half.dtype == jnp.float32
    assert l2(half, full) < 0.05


@pytest.mark.slow
def test_pose_input_starts_without_effect():
    plain, args = MVUNet(TINY), inputs(TINY)
    posed = MVUNet(dataclasses.replace(TINY, pose_features=8))
    poses = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, (1, 6, 4)), jnp.float32)
    params = random_params(plain)
    fresh = posed.init(jax.random.key(0), *args, poses=poses)
    fresh = jax.tree.map(
        lambda x: getattr(x, "value", x), fresh, is_leaf=lambda x: hasattr(x, "value")
    )
    encoder = fresh["params"]["pose_encoder"]
    merged = {**params, "pose_encoder": encoder}
    found = posed.apply({"params": merged}, *args, poses=poses)
    np.testing.assert_array_equal(found, plain.apply({"params": params}, *args))

    def loss(encoder):
        out = posed.apply({"params": {**params, "pose_encoder": encoder}}, *args, poses=poses)
        return jnp.sum(out**2)

    slope = jax.jit(jax.grad(loss))(merged["pose_encoder"])["linear_3"]["kernel"]
    assert float(jnp.abs(slope).max()) > 0  # it starts at zero but can leave it


def test_errors_name_the_cause():
    module = MVUNet(TINY)
    params, args = random_params(module), inputs(TINY)
    wrong = (args[0], args[1], jnp.zeros((1, 6, 5, 7)), args[3])
    with pytest.raises(ShapeError, match="prompt embeddings have the wrong width"):
        module.apply({"params": params}, *wrong)
    with pytest.raises(ShapeError, match="wrong number of channels"):
        module.apply({"params": params}, args[0][..., :4], *args[1:])
    with pytest.raises(ConfigError, match="attention mode"):
        module.apply({"params": params}, *args, attention="rows")
    with pytest.raises(ConfigError, match="time_scale_shift"):
        table.config_from_source(
            {
                "block_out_channels": [8],
                "attention_head_dim": 1,
                "cross_attention_dim": 8,
                "down_block_types": ["DownBlock2D"],
                "use_linear_projection": True,
                "class_embed_type": "projection",
                "resnet_time_scale_shift": "scale_shift",
            }
        )
