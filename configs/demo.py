"""The whole pipeline at toy size, on a recording it makes itself.

    make demo        (= python launch.py --config=configs/demo.py --workdir=runs/demo)

All stages, one after the other. A procedural six-camera recording becomes samples (prepare); two
frames become 3D Gaussians without any network (fit), and the page runs/demo/report.html shows them
from cameras that no video has. It then grows: twenty frames as a film with tracks (film); a small
GS-LRM, trained on the samples (gslrm), lifts frames it did not see (infer) and is judged from the
same cameras; at last the way from one photo, a few steps of everything: the film's fits drawn from
one rig (one_rig), a toy multi-view network that learns it (mvdiff), samples of the views it
generates (synth), a fine-tune on them (gslrm_synth), and a photo turned into Gaussians (photo).
Without the released weights that part shows only that it runs.

Each stage works in a sub-folder of the workdir, and its keys are those of its own config:
--config.gslrm.train.steps=500.

variant   what                                                    time, memory
base      as above                                                4 min 5 s on 2 quiet cores (350 s
                                                                  of processor time), 2.8 GB; first
                                                                  splats after 50 s
quick     a few steps of everything; figures mean nothing         minutes, below 4 GB
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, fit, gslrm, infer, mvdiff, prepare, synth

VARIANTS = {
    "base": {},
    "quick": {
        "recording.frames": 12,
        "prepare.split.gap_s": 0.05,
        "fit.limit": 1,
        "fit.fit.cells": 20,
        "fit.fit.nodes": 16,
        "fit.fit.coarse_steps": 4,
        "fit.fit.fine_steps": 4,
        "fit.turntable.frames": 4,
        "fit.turntable.size": 64,
        "film.frames": "8:12",
        "film.fit.cells": 20,
        "film.fit.nodes": 16,
        "film.fit.coarse_steps": 4,
        "film.fit.fine_steps": 4,
        "film.film.nodes": 16,
        "film.film.coarse_steps": 2,
        "film.film.fine_steps": 2,
        "film.turntable.size": 64,
        "prepare.prepare.size": 96,
        "recording.width": 288,
        "recording.height": 256,
        "gslrm.train.steps": 4,
        "gslrm.data.size": 32,
        "gslrm.model.animal_share": 0.5,  # patches are large
        "gslrm.eval_samples": 1,
        "infer.limit": 1,
        "infer.turntable.frames": 4,
        "infer.turntable.size": 64,
    },
}  # fmt: skip

# The way from one photo: nobody looks at what toy weights imagine for longer than this.
PHOTO = {
    "mvdiff.data.size": 16,
    "mvdiff.toy.vae_steps": 2,
    "mvdiff.toy.vae.block_channels": (4, 8),
    "mvdiff.model.block_channels": (16, 16),
    "mvdiff.train.steps": 2,
    "mvdiff.eval.steps": 1,
    "synth.generate.steps": 1,
    "synth.limit": 4,
    "gslrm_synth.train.steps": 2,
    "photo.generate.steps": 1,
    "photo.turntable.frames": 4,
    "photo.turntable.size": 64,
}


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("demo")
    with c.unlocked():
        c.recording = recording()
        c.prepare = prepare.get_config("tiny")
        c.fit = fit.get_config("fast")
        c.film = fit.get_config("fast")
        c.film.film.identity = True  # tracks; 20 frames by one set of Gaussians
        c.gslrm = gslrm.get_config("tiny")
        c.infer = infer.get_config("tiny")
        c.one_rig = synth.get_config("tiny")
        c.mvdiff = mvdiff.get_config("tiny")
        c.synth = synth.get_config("tiny")
        c.gslrm_synth = gslrm.get_config("tiny")
        c.photo = infer.get_config("tiny")
    c.prepare.prepare.min_mask_px = 20  # the animal is small in small pictures
    c.prepare.prepare.subject_mm = 175.0  # the tail's tip is cut in some views
    c.prepare.split.gap_s = 0.2  # the recording lasts seconds
    c.prepare.prepare.size = 256  # for fit; the networks shrink them
    c.fit.split = "val"
    c.fit.limit = 2
    c.film.frames = "56:76"  # of both splits, for what learns from its fits
    c.gslrm.train.steps = 400
    c.gslrm.model.animal_share = 0.15
    c.gslrm.train.save_every = 100
    c.infer.split = "val"
    c.infer.limit = 2
    c.mvdiff.train.batch_size = 2
    c.mvdiff.train.eval_every = 0
    c.mvdiff.eval.samples = 1
    c.mvdiff.eval.guidances = (3.0,)  # one sampler less to compile
    c.one_rig.limit = 0  # all frames of the film
    c.gslrm_synth.data.size = 32
    c.gslrm_synth.model.animal_share = 1.0  # toy views are hardly white anywhere
    c.gslrm_synth.train.optim.lr = 5e-4
    c.gslrm_synth.eval_samples = 2
    c.update_from_flattened_dict(PHOTO)
    return common.variant(c, variant, VARIANTS)


def recording() -> ConfigDict:
    """The procedural recording."""
    c = ConfigDict()
    c.frames = 80  # at 30 a second
    c.width = 432  # pixels
    c.height = 384  # pixels
    c.heldout_cameras = 2  # cameras of no video, for evaluation
    return c.lock()
