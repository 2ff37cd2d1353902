"""The CUDA kernels: run on the CPU with fibers for threads, and compiled for GPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

wp = pytest.importorskip("warp")
from mouselift_jax.render import tiled, warp_cuda  # noqa: E402
from mouselift_jax.render.types import Spec  # noqa: E402
from tests.render.suite import CAMERAS, GAUSSIANS, RasterizerSuite, assert_close, scene  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def blocks_on_the_cpu():
    wp.config.enable_cpu_blocks = True


@pytest.mark.slow
class TestWarpCudaOnFibers(RasterizerSuite):
    implementation = "warp_blocks"

    def test_memory_of_the_backward_does_not_grow_with_the_views(self, monkeypatch):
        """A group of views is drawn at a time: here groups of one."""
        monkeypatch.setattr(warp_cuda, "_TABLE_ROWS", 3000)
        super().test_memory_of_the_backward_does_not_grow_with_the_views()


def test_golden_on_fibers():
    """The one case of the suite that is cheap enough for every run."""
    suite = RasterizerSuite()
    suite.implementation = "warp_blocks"
    suite.test_golden("base")


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 2], ids=["view by view", "both views at once"])
def test_a_full_buffer_changes_the_slabs_and_nothing_else(together, monkeypatch):
    """The least buffer there can be, one pair per tile: exact, forward and backward."""
    arrays = {k: jnp.asarray(v)[None] for k, v in scene().items()}
    monkeypatch.setattr(warp_cuda, "_TABLE_ROWS", 60 * together)
    warp_cuda._differentiable.cache_clear()

    def loss(arrays, module, capacity):
        rgb, light, depth, info = module.rasterize_flat(
            Spec(37, 31, 0.2, None), *(arrays[k] for k in (*GAUSSIANS, *CAMERAS)), capacity=capacity
        )
        return (rgb * rgb).sum() + (light * depth).sum(), (rgb, light, depth, info)

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=(1, 2))
    gradients, (*pictures, found) = run(arrays, warp_cuda, 6)
    expected, (*truth, info) = run(arrays, tiled, None)
    assert int(info["slabs"]) == 1 and int(found["slabs"]) > 20
    for a, b in zip(pictures, truth, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert_close(gradients, {k: expected[k] for k in (*GAUSSIANS, "w2c")}, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [86, 90, 120])
def test_compiles_for_gpus(arch, tmp_path):
    """Ampere, Hopper and the newest generation the wheel knows; no GPU is needed to compile."""
    module = wp.get_module(warp_cuda.__name__)
    wp.compile_aot_module(module, arch=arch, module_dir=str(tmp_path), use_ptx=False)
    cubins = [p for p in tmp_path.iterdir() if p.suffix in (".cubin", ".ptx")]
    assert cubins and all(p.stat().st_size > 5000 for p in cubins), list(tmp_path.iterdir())
