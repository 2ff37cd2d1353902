"""Geometry is float32 on every device: no product of a camera and a point is left to it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from mouselift_jax.geometry.camera import Camera, invert_rigid
from mouselift_jax.geometry.precise import matmul, transform
from mouselift_jax.geometry.rays import camera_rays
from mouselift_jax.geometry.rig import look_at_c2w
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.models.gslrm import GSLRM, GSLRMConfig
from mouselift_jax.models.silhouettes import hull_span

K = jnp.asarray([[549.0, 0, 32], [0, 549, 32], [0, 0, 1]])[None]
C2W = jnp.asarray(look_at_c2w(np.array([1.0, -2.0, 1.5])), jnp.float32)[None]
POINTS = jnp.ones((5, 3))
MOVE = Similarity(jnp.float32(2.0), C2W[0, :3, :3], jnp.ones(3))


def product_precisions(jaxpr):
    """Of every dot_general, those of inner programs included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        for inner in jaxprs_in_params(equation.params):
            found += product_precisions(inner)
    return found


def camera(K, c2w):
    return Camera(K, c2w, 64, 64)


GEOMETRY = {
    "camera_rays": lambda K, c2w: camera_rays(K, c2w, 4, 4),
    "invert_rigid": lambda K, c2w: invert_rigid(c2w),
    "project": lambda K, c2w: camera(K, c2w).project(POINTS),
    "flipped": lambda K, c2w: camera(K, c2w).flipped()[0].c2w,
    "resized": lambda K, c2w: camera(K, c2w).resized(32, 32)[0].K,
    "transformed": lambda K, c2w: camera(K, c2w).transformed(MOVE).c2w,
    "compose": lambda K, c2w: Similarity(1.0, c2w[0, :3, :3], K[0, 0]).compose(MOVE).t,
    "inverse": lambda K, c2w: Similarity(1.0, c2w[0, :3, :3], K[0, 0]).inverse().t,
    "hull_span": lambda K, c2w: hull_span(
        jnp.ones((1, 1, 64, 64), bool), K[None], c2w[None], POINTS[None], POINTS[None]
    ),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_products_ask_for_full_precision(name):
    found = product_precisions(jax.make_jaxpr(GEOMETRY[name])(K, C2W).jaxpr)
    assert found
    assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_matmul_is_the_product():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 3, 5))
    np.testing.assert_allclose(matmul(a, b), a @ b)
    np.testing.assert_allclose(matmul(jnp.asarray(a), b), a @ b, rtol=1e-5)
    np.testing.assert_allclose(transform(a, b[..., 0]), (a @ b)[..., 0])
    assert isinstance(matmul(a, b), np.ndarray)


def compiled_for_tpu(function, *args):
    """The text of the program that libtpu makes for a v5e; nothing is run."""
    pytest.importorskip("libtpu", reason="pip install libtpu: the TPU's compiler, no device")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    place = jax.sharding.SingleDeviceSharding(devices[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), args)
    return jax.jit(function).lower(*shapes).compile().as_text()


@pytest.mark.parametrize("name", ["camera_rays", "project", "invert_rigid"])
def test_nothing_is_rounded_on_a_tpu(tpu_compiler, name):
    assert "bf16[" not in compiled_for_tpu(GEOMETRY[name], K, C2W)


def test_no_camera_of_the_network_is_rounded_on_a_tpu(tpu_compiler):
    """Between c2w and the means no array of a camera's shape is bfloat16."""
    config = GSLRMConfig(width=64, head_dim=32, n_layers=1, attention="xla")
    model = GSLRM(config)
    images, cameras = (
        jnp.ones((1, 2, 32, 32, 3)),
        (jnp.stack([K[0]] * 2)[None], jnp.stack([C2W[0]] * 2)[None]),
    )
    params = model.init(jax.random.key(0), images, *cameras)
    text = compiled_for_tpu(model.apply, params, images, *cameras)
    # Pictures and rays as the layers' inputs are rounded, and may be; a camera's matrices are not.
    rounded = re.findall(r"bf16\[(?:1,)?2,[34],[34](?:,1)?\]", text)
    assert not rounded
    assert "bf16" in text  # the layers' own products are: the search can find them


@pytest.fixture
def tpu_compiler(monkeypatch):
    for name, value in {
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot read back what is no CPU's
    yield
    jax.config.update("jax_enable_compilation_cache", True)
