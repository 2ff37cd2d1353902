"""What was written before the house was redrawn is read: a run, a sample set, converted weights.

The files in tests/golden/before_the_move were written by the commit before the move (a14a939): with
configs/prepare.py:tiny on two frames of a procedural recording, and with
tools/convert_torch_ckpt.py gslrm and mvdiffusion from tests/torch_sources.py, its networks made as
small as they get; of the pipeline one component is kept. Of the records only the sources' folder
was taken out. computed.npz holds what that commit's networks made of the pictures below.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import prepare
from mouselift_jax.data.samples import SampleSet
from mouselift_jax.errors import ConfigError
from mouselift_jax.geometry.rig import turntable
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import read_json, read_summary
from mouselift_jax.weights.pretrained import load_pretrained

OLD = Path(__file__).parent / "golden" / "before_the_move"


def test_a_sample_set_is_read():
    samples = SampleSet.open(OLD / "prepare")
    assert samples.ids("train") == ("sample_000000", "sample_000001")
    cameras = samples.cameras("sample_000000")
    assert np.shape(cameras.K) == (6, 3, 3) and cameras.width == 64


def test_a_run_is_read_and_goes_on(tmp_path, caplog):
    """Keys that came since are told, not refused: nothing in the folder contradicts them."""
    shutil.copytree(OLD / "prepare", tmp_path / "run")
    assert read_summary(tmp_path / "run")["finished"]
    stored = json.loads((tmp_path / "run/config.json").read_text())
    config = prepare.get_config("tiny")
    with config.unlocked():
        config.update(stored)
    with Workdir(tmp_path / "run", config) as folder:
        assert folder.path == tmp_path / "run"
    new = {key for key in config.prepare if key not in stored["prepare"]}
    assert new and all(f"prepare.{key}" in caplog.text for key in new)
    config.prepare.size = 65
    with pytest.raises(ConfigError, match="prepare.size: 64 -> 65"):
        Workdir(tmp_path / "run", config).__enter__()


def ramp(low, high, *shape):
    return np.linspace(low, high, np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("folder", "component"), [("gslrm", "gslrm"), ("pipeline", "image_encoder")]
)
def test_converted_weights_are_read_and_compute_what_they_did(folder, component):
    """Their checksums are held against them while they are read."""
    folder = OLD / "converted" / folder
    module, params = load_pretrained(folder, component)
    record = read_json(folder / "conversion.json")["components"][component]
    assert sum(x.size for x in jax.tree.leaves(params)) == record["parameters"]
    if component == "gslrm":
        rig = turntable(2, elevation_deg=15.0, size=8)
        inputs = ramp(0, 1, 1, 2, 8, 8, 3), np.float32(rig.K)[None], np.float32(rig.c2w)[None]
        found = jax.jit(module.apply)({"params": params}, *inputs).means[0]
    else:
        found = jax.jit(module.apply)({"params": params}, ramp(-1, 1, 1, 28, 28, 3))
    with np.load(OLD / "converted" / "computed.npz") as computed:
        np.testing.assert_allclose(found, computed[component], atol=1e-5)
