"""What the benchmark compiles for a TPU is the step that the stages run."""

from types import SimpleNamespace

import jax
import pytest
from jax.experimental import topologies

from mouselift_jax.stages import gslrm, mvdiff
from mouselift_jax.stages.harness.cost import Cost
from tests.benchmarks.tpu_aot_train import compile_case


@pytest.mark.slow
@pytest.mark.parametrize("stage", [gslrm, mvdiff])
def test_every_stage_lowers_for_a_tpu_as_it_is(stage, monkeypatch):
    """It once replaced the choice of attention by a function that the networks could not call."""
    devices, programs = jax.devices()[:1], []
    here = SimpleNamespace(devices=devices)
    monkeypatch.setattr(topologies, "get_topology_desc", lambda **_: here)

    def lowered(config, workdir, devices):
        programs.append(stage.abstract_trainer(config, devices).lower(("tpu",)).as_text())
        return Cost({"data": 1}, 0, 0, 0, 0, 1.0, {}, 0, 1.0)

    monkeypatch.setattr(stage, "compile_plan", lowered)
    name, changes = stage.__name__.split(".")[-1], {"train.dtype": "bfloat16"}
    found = compile_case(name, "v5e:2x2", "1,1,1,1", 1, "tiny", changes)
    assert found["stage"] == name and "stablehlo" in programs[0]
