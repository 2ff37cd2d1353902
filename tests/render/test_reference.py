from tests.render.suite import RasterizerSuite


class TestReference(RasterizerSuite):
    implementation = "reference"
