"""Shared set-up of all tests.

`make test` runs everything but the tests marked slow. Tests that compare with material outside the
repository take the fixture `shared` and are skipped, with the reason, where it is absent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Before jax is imported: eight virtual devices would slow every test, two show sharding mistakes.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax_tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if os.environ.get("MOUSELIFT_TEST_WITHOUT_WARP"):
    sys.modules["warp"] = None  # as on a machine where warp-lang is not installed

sys.path.insert(0, str(ROOT))  # `tests.typechecker` is imported by name

from jaxtyping import install_import_hook  # noqa: E402

import tests.typechecker  # noqa: E402, F401  (named by the hook below)

install_import_hook(
    [f"mouselift_jax.{p}" for p in ("geometry", "splats", "render", "models", "diffusion")],
    "tests.typechecker.check",
)

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recordings, goldens and sample data beside the project."""
    path = Path(os.environ.get("MOUSELIFT_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no folder {path} (set MOUSELIFT_SHARED to run this test)")
    return path


@pytest.fixture(autouse=True)
def coarse_measures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Films are measured coarsely, seconds cheaper a frame, but where measuring is tested."""
    if request.path.stem != "test_measure":
        from mouselift_jax.pipelines import measure

        monkeypatch.setattr(measure, "VIEWS", 8)
        monkeypatch.setattr(measure, "SIDE", 96)
        monkeypatch.setattr(measure, "HULL_CELLS", 40)


# Where numbers of two kinds must not meet unsaid: int32 + float32, or bfloat16 + float32.
STRICT = {"geometry", "splats", "diffusion"}


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """No array changes its type unasked in the tests of the layers that compute."""
    if request.path.relative_to(ROOT / "tests").parts[0] in STRICT:
        import jax

        with jax.numpy_dtype_promotion("strict"):
            yield
    else:
        yield


@pytest.fixture(autouse=True, scope="module")
def which_rasterizer(request: pytest.FixtureRequest) -> Iterator[None]:
    """Who draws with the best rasterizer of the machine says so, and is run without warp-lang too.

    `make test-without-warp` runs only those: the others name theirs, so that they would do the same
    once more.
    """
    folder = request.path.relative_to(ROOT / "tests").parts[0]
    if folder not in ("render", "pipelines") or request.node.get_closest_marker("any_rasterizer"):
        yield
        return
    import importlib

    def refuse(platform: str) -> str:
        pytest.fail(
            "this draws with the best rasterizer here: give `implementation=`, or mark the file "
            "`pytestmark = pytest.mark.any_rasterizer`"
        )

    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("mouselift_jax.render.rasterize")
        patch.setattr(module, "default_implementation", refuse)
        yield


@pytest.fixture
def two_devices() -> None:
    """For tests that shard over two; this file asks for two virtual ones where the user did not."""
    import jax

    if jax.device_count() < 2:
        pytest.skip(
            "needs two devices, here is one (on a CPU: unset XLA_FLAGS, or put "
            "--xla_force_host_platform_device_count=2 into it)"
        )


@pytest.fixture(scope="session")
def golden() -> Path:
    """Small arrays that travel with the tests."""
    return Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import jax

    if jax.default_backend() == "cpu":
        skip = pytest.mark.skip(reason="needs an accelerator; this machine has none")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
