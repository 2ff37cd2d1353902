import pytest

pytest.importorskip("warp")
from tests.render.suite import RasterizerSuite  # noqa: E402


class TestWarpCpu(RasterizerSuite):
    implementation = "warp"
