from tests.render.suite import RasterizerSuite


class TestTiled(RasterizerSuite):
    implementation = "tiled"
