"""Sections of a configuration as dataclasses."""

import dataclasses

import pytest

from configs import common, mvdiff
from mouselift_jax.errors import ConfigError
from mouselift_jax.runs.settings import typed
from mouselift_jax.stages.multiview.settings import MultiviewSettings
from mouselift_jax.training.settings import TrainSettings


def test_sections_in_a_section_become_dataclasses():
    section = common.training()
    found = TrainSettings.of(section)
    assert found.optim.b2 == section.optim.b2
    assert found.mesh.data == -1
    assert TrainSettings.of(found) is found


@pytest.mark.parametrize("variant", mvdiff.VARIANTS)
def test_every_key_of_a_stage_has_its_field_and_every_field_its_key(variant):
    section = mvdiff.get_config(variant).to_dict()
    found = dataclasses.asdict(MultiviewSettings.of(section))
    found["model"].pop("sample_size")  # follows from the pictures' size
    kept = {k: v for k, v in found["toy"]["vae"].items() if k in section["toy"]["vae"]}
    found["toy"]["vae"] = kept  # the toy autoencoder leaves the rest at its defaults
    assert found == section


def test_unknown_and_missing_keys_are_named():
    @dataclasses.dataclass(frozen=True)
    class Two:
        size: int
        seed: int = 0

    assert typed(Two, {"size": 3}) == Two(3)
    with pytest.raises(ConfigError, match="config.sise"):
        typed(Two, {"sise": 3})
    with pytest.raises(ConfigError, match=r"lacks a key .*config.size"):
        typed(Two, {"seed": 3})
