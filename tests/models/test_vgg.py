"""VGG distances against measured values and against the lpips package's own arithmetic."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mouselift_jax.errors import ShapeError
from mouselift_jax.models import vgg
from mouselift_jax.models.vgg import LPIPS, VGG19


def formula_weights(module, seed=0, names=None):
    """The goldens' weights: standard normals in torch's order, He-scaled, biases x 0.1."""
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x, x))["params"]
    rng, out = np.random.RandomState(seed), {}
    for name in names:
        kh, kw, i, o = shapes[name]["kernel"].shape
        kernel = rng.standard_normal((o, i, kh, kw)) * np.sqrt(2 / (9 * i))
        bias = rng.standard_normal(o) * 0.1
        out[name] = {
            "kernel": np.float32(kernel.transpose(2, 3, 1, 0)), "bias": np.float32(bias)
        }  # fmt: skip
    return out


def vgg19_weights():
    return formula_weights(VGG19(), names=[f"conv{i}" for i in range(1, 17)])


@pytest.fixture(scope="module")
def measured(shared):
    return load_file(shared / "goldens/gslrm/tiny_losses.safetensors")


def pictures(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


@pytest.mark.shared
def test_perceptual_distance_and_taps_equal_the_measured_ones(measured):
    params = {"params": vgg19_weights()}
    a, b = pictures(measured["pred"]), pictures(measured["target"])
    with jax.default_matmul_precision("highest"):
        taps = VGG19().apply(params, a, method="features")[1:]
        distance = jax.jit(VGG19().apply)(params, a, b)
    np.testing.assert_allclose(distance.mean(), measured["perceptual_randomvgg"][0], rtol=1e-5)
    for i, tap in enumerate(taps):
        np.testing.assert_allclose(tap.mean(), measured[f"vgg_tap{i}_mean"][0], rtol=1e-5)
        corner = jnp.moveaxis(tap[0, :2, :2, :8], -1, 0)
        np.testing.assert_allclose(corner, measured[f"vgg_tap{i}_corner"], rtol=2e-4, atol=2e-3)


@pytest.mark.torch
def test_both_distances_equal_a_short_torch_oracle():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 32, 32, 3)).astype(np.float32) for _ in range(2))

    def trunk(x, params, names, pools, taps, pool):
        out = []
        for i, name in enumerate(names, 1):
            p = {k: torch.from_numpy(np.array(v)) for k, v in params[name].items()}
            x = F.relu(F.conv2d(x, p["kernel"].permute(3, 2, 0, 1), p["bias"], padding=1))
            if i in taps:
                out.append(x)
            if i in pools:
                x = pool(x, 2, 2)
        return out

    ta, tb = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (a, b))
    names = [f"features_{i}" for i in vgg.VGG16_NAMES]
    params = formula_weights(LPIPS(), seed=1, names=names)
    lins = [rng.random(c).astype(np.float32) for c in (64, 128, 256, 512, 512)]
    params |= {f"lin{k}": {"weights": w} for k, w in enumerate(lins)}
    shift, scale = (
        torch.tensor(v)[None, :, None, None] for v in (vgg.LPIPS_SHIFT, vgg.LPIPS_SCALE)
    )
    layout = (names, vgg.VGG16_POOLS, vgg.VGG16_TAPS, F.max_pool2d)
    feats = [trunk(((2 * x - 1) - shift) / scale, params, *layout) for x in (ta, tb)]
    want = 0.0
    for fa, fb, lin in zip(*feats, lins, strict=True):
        fa, fb = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (fa, fb))
        weights = torch.from_numpy(lin)[None, :, None, None]
        want = want + ((fa - fb).square() * weights).sum(1).mean((1, 2))
    with jax.default_matmul_precision("highest"):
        got = jax.jit(LPIPS().apply)({"params": params}, a, b)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_identical_pictures_have_distance_zero_and_finite_gradients():
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.random((1, 16, 16, 3)), jnp.float32)
    params = formula_weights(LPIPS(), names=[f"features_{i}" for i in vgg.VGG16_NAMES])
    params |= {f"lin{k}": {"weights": np.ones(c)} for k, c in enumerate((64, 128, 256, 512, 512))}
    dead = jax.tree.map(np.zeros_like, params)  # every feature vector is zero
    distance = jax.jit(jax.value_and_grad(lambda x, p: LPIPS().apply({"params": p}, x, a).sum()))
    for p in (params, dead):
        value, grad = distance(a, p)
        assert abs(float(value)) < 1e-9 and np.isfinite(grad).all()


def test_pictures_split_over_devices_stay_where_they_are(two_devices):
    """With one kind of picture behind the other, each layer sent half of its features over."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from mouselift_jax.stages.harness.cost import collectives

    module = LPIPS()
    mesh = Mesh(np.array(jax.devices()[:2]), "d")
    shape, batch = (4, 32, 32, 3), NamedSharding(mesh, PartitionSpec("d"))
    pictures = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch)
    whole = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape))
    one = NamedSharding(mesh, PartitionSpec())
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), nn.meta.unbox(whole)
    )
    loss = jax.grad(lambda a, b, p: module.apply(p, a, b).mean())
    text = jax.jit(loss, out_shardings=batch).lower(pictures, pictures, params).compile().as_text()
    assert collectives(text)[0] == {}


def test_sizes_of_the_networks():
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    for module, want in ((VGG19(), 20_024_384), (LPIPS(), 14_714_688 + 1472)):
        tree = jax.eval_shape(module.init, jax.random.key(0), x, x)
        assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == want


def test_pictures_smaller_than_the_pools_are_an_error():
    x = np.zeros((1, 8, 8, 3), np.float32)
    with pytest.raises(ShapeError, match="too small"):
        VGG19().init(jax.random.key(0), x, x)
