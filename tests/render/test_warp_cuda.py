"""The CUDA kernels: run on the CPU with fibers for threads, and compiled for GPUs."""

import pytest

wp = pytest.importorskip("warp")
from tests.render.suite import RasterizerSuite  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def blocks_on_the_cpu():
    wp.config.enable_cpu_blocks = True


@pytest.mark.slow
class TestWarpCudaOnFibers(RasterizerSuite):
    implementation = "warp_blocks"
    golden_cases = ("base", "sh3", "huge", "opaque")


def test_golden_on_fibers():
    """The one case of the suite that is cheap enough for every run."""
    suite = RasterizerSuite()
    suite.implementation = "warp_blocks"
    suite.test_golden("base")


@pytest.mark.slow
@pytest.mark.parametrize("arch", [86, 90, 120])
def test_compiles_for_gpus(arch, tmp_path):
    """Ampere, Hopper and the newest generation the wheel knows; no GPU is needed to compile."""
    from mouselift_jax.render import warp_cuda

    module = wp.get_module(warp_cuda.__name__)
    wp.compile_aot_module(module, arch=arch, module_dir=str(tmp_path), use_ptx=False)
    cubins = [p for p in tmp_path.iterdir() if p.suffix in (".cubin", ".ptx")]
    assert cubins and all(p.stat().st_size > 5000 for p in cubins), list(tmp_path.iterdir())
