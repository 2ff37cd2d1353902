"""A recording's fits teach the network that makes views, and a photo becomes Gaussians.

The stages at toy size, one after the other, in one process: what they show means nothing; what
each hands to the next, and what it says of the rig, does.
"""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

from mouselift_jax.data.samples.rig_file import load_rig, named_rig
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.files import write_bytes_atomic
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import read_summary
from mouselift_jax.splats import load_ply
from mouselift_jax.stages.harness.plan import find_stage
from tests.sample_sets import write_samples

SIDE = 32
SMALL = {
    "fit": {"heldout_cameras": (2,), "limit": 3, "turntable.frames": 0, "sequence": False},
    "synth": {"size": SIDE, "further": 2, "zoom": 1.0, "least_iou": 0.3},
    "mvdiff": {
        "data.size": SIDE, "toy.vae_steps": 2, "toy.vae.block_channels": (4, 8),
        "model.block_channels": (16, 16), "train.steps": 2, "train.batch_size": 2,
        "eval.steps": 1, "eval.samples": 1, "eval.guidances": (3.0,), "train.eval_every": 0,
    },
    "gslrm": {
        "data.size": SIDE, "data.n_inputs": 3, "data.n_views": 8, "model.width": 32,
        "model.n_layers": 1, "model.animal_share": 1.0, "train.steps": 2, "train.batch_size": 2,
        "eval_samples": 1,
    },
    "infer": {"generate.steps": 1, "turntable.frames": 0},
}  # fmt: skip


def run(stage, folder, **inputs):
    config = importlib.import_module(f"configs.{stage}").get_config("tiny")
    config.update_from_flattened_dict(SMALL[stage] | {k: str(v) for k, v in inputs.items()})
    with Workdir(folder, config) as workdir:
        find_stage(stage).run(config, workdir)
    summary = read_summary(folder)
    assert summary["finished"]
    return summary, (folder / "report.html").read_text()


@pytest.mark.slow
def test_fit_synth_mvdiff_and_a_photo(tmp_path):
    samples = write_samples(tmp_path / "samples", n=3, size=64, n_val=1)
    run("fit", tmp_path / "fit", samples=samples)
    made, page = run("synth", tmp_path / "synth", fits=tmp_path / "fit")
    assert made["metrics"]["rig/spread_px"] < 1e-6 and "the canonical rig (" in page
    one_rig = SampleSet.open(tmp_path / "synth/samples")

    learned, page = run("mvdiff", tmp_path / "mvdiff", samples=tmp_path / "synth")
    assert learned["metrics"]["rig/spread_px"] < 0.01
    assert "Rig learned: the canonical rig (" in page
    assert not [w for w in learned["warnings"] if "spread" in w or "mixes" in w]
    rig, _ = load_rig(tmp_path / "mvdiff/cameras.json")
    canonical, _ = load_rig(named_rig("canonical"))
    expected = canonical.cameras.resized(SIDE, SIDE)[0]
    np.testing.assert_allclose(rig.cameras.c2w, expected.c2w, atol=1e-5)

    run("gslrm", tmp_path / "gslrm", samples=tmp_path / "synth")  # 3 views in, 5 further judge
    photo = tmp_path / "photo.png"
    write_bytes_atomic(photo, one_rig.picture_paths(one_rig.ids("val")[0])[0].read_bytes())
    _, page = run(
        "infer", tmp_path / "photo", image=photo, mvdiff=tmp_path / "mvdiff",
        gslrm=tmp_path / "gslrm",
    )  # fmt: skip
    assert "as the canonical rig (" in page
    assert json.loads((tmp_path / "photo/item.json").read_text())["photo"] == "photo.png"
    load_ply(tmp_path / "photo/splats.ply")
