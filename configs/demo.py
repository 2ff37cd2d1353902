"""The whole pipeline at toy size, on a recording it makes itself.

    make demo        (= python launch.py --config=configs/demo.py --workdir=runs/demo)

A procedural six-camera recording becomes samples, a small GS-LRM is trained on them, and 3D
Gaussians of
frames it did not see are judged from cameras it did not see. Minutes on 2 CPU cores; the time
and the figures
reached are in docs/benchmarks.md and in the report. Each stage works in a sub-folder of the
workdir, and its
keys are those of its own config: --config.gslrm.train.steps=500.

variant   what
base      as above
quick     a few steps of everything, to see that it runs; figures mean nothing
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, gslrm, infer, prepare

VARIANTS = {
    "base": {},
    "quick": {
        "recording.frames": 12,
        "prepare.split.gap_s": 0.05,
        "gslrm.train.steps": 4,
        "gslrm.data.size": 32,
        "gslrm.eval_samples": 1,
        "infer.limit": 1,
        "infer.turntable.frames": 4,
        "infer.turntable.size": 64,
    },
}


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("demo")
    with c.unlocked():
        c.recording = recording()
        c.prepare = prepare.get_config("tiny")
        c.gslrm = gslrm.get_config("tiny")
        c.infer = infer.get_config("tiny")
    c.prepare.prepare.min_mask_px = 20  # the animal is small in small pictures
    c.prepare.prepare.subject_mm = 175.0  # the tail's tip is cut in some views
    c.prepare.split.gap_s = 0.2  # the recording lasts seconds
    c.gslrm.train.steps = 600
    c.gslrm.train.save_every = 100
    c.infer.split = "val"
    c.infer.limit = 2
    return common.variant(c, variant, VARIANTS)


def recording() -> ConfigDict:
    """The procedural recording."""
    c = ConfigDict()
    c.frames = 60  # at 30 a second
    c.width = 288  # pixels
    c.height = 256
    c.heldout_cameras = 2  # cameras of no video, for evaluation
    return c.lock()
