"""A recording becomes 3D Gaussians: no weights, no training, no GPU.

    python launch.py --config=configs/fit.py --config.samples=runs/prepare \
        --config.frames=0:500:5 --workdir=runs/fit
    python launch.py --config=configs/fit.py --config.recording=RECORDING --workdir=runs/fit

Give `samples` (cut out by `prepare`) or `recording`: then `prepare` runs first, in the folder
`prepare` of the workdir. Every frame writes items/<id>/splats.ply, several frames also a film.
--config.heldout_cameras=3, hides a camera from the fit: its figures say how far to trust the rest.

variant   what
base      a thing to show: 112 cells along the animal
fast      80 cells and half of the steps: to look through a recording
film      base, and one set of Gaussians keeps its identity through all frames (docs/film_format.md)
best      144 cells and twice the steps: for single frames
tiny      toy size, for tests
Processor seconds of base: about 2.4 for a first frame, 1.3 for a next one (512 px); of fast: 1.5
for a first one. 1.7 GB was the most that 50 frames of a recording held, `prepare` included.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, infer, prepare

VARIANTS = {
    "base": {},
    "fast": {"fit.cells": 80, "fit.coarse_steps": 80, "fit.fine_steps": 80,
             "fit.next_coarse_steps": 24, "fit.next_fine_steps": 24},
    "best": {"fit.cells": 144, "fit.coarse_steps": 240, "fit.fine_steps": 360,
             "fit.next_coarse_steps": 90, "fit.next_fine_steps": 150},
    "film": {"film.identity": True},
    "tiny": {"fit.cells": 20, "fit.coarse_steps": 6, "fit.fine_steps": 12, "fit.nodes": 16,
             "fit.next_coarse_steps": 6, "fit.next_fine_steps": 6, "film.nodes": 16,
             "film.coarse_steps": 6, "film.fine_steps": 6, "turntable.frames": 8,
             "turntable.size": 64, "prepare.prepare.size": 128},
}  # fmt: skip


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("fit")
    with c.unlocked():
        c.samples = common.path()  # sample set, or the folder of a run that wrote one
        c.recording = common.path()  # or a recording, which is prepared first
        c.split = "all"  # all | train | val: which samples
        c.frames = ""  # a:b:step, frame numbers of the recording; "" = all of the split
        c.limit = 0  # > 0: only the first so many samples
        c.views = ()  # camera numbers that are looked at at all; () = all of a sample's
        c.heldout_cameras = ()  # camera numbers that the fit must not see; they judge it
        c.size = 0  # pixels of the pictures; 0 = as stored
        c.warm_start = True  # a frame starts from the one before where that helps
        c.leave_one_out = False  # also fit without each camera: `shift_mm` in PLY and motion.csv
        c.sequence = True  # several frames also become videos, motion.csv (mm) and sequence.html
        c.filter = "none"  # mouse | head | none: which Gaussians are left out of the PLY
        c.axes = "opencv"  # axes of the PLY
        c.render = common.path()  # implementation of the rasterizer; None = the best here
        c.turntable = infer.turntable()  # of a single sample; a film has one in videos/
        c.turntable.frames, c.turntable.size = 60, 384
        c.fit = fit()
        c.film = film()
        c.prepare = prepare.get_config("fill")  # of `recording`: all that the pixels hold
        c.prepare.split.val_fraction = 0.0  # nothing is trained
    return common.variant(c, variant, VARIANTS)


def fit() -> ConfigDict:
    """How Gaussians are fitted; lengths in cells (docs/fit.md has the effect of each)."""
    c = ConfigDict()
    c.cells = 112  # along the animal: size and number of the Gaussians
    c.coarse_steps = 120  # in pictures of half the size: the shape
    c.fine_steps = 100  # in pictures as they are: the fur
    c.next_coarse_steps = 30  # of a frame that starts from the one before
    c.next_fine_steps = 60  # the same in pictures as they are
    c.nodes = 256  # control points of the smooth deformation
    c.node_rate = 0.5  # first step of a control point
    c.mean_rate = 0.2  # first step of a single Gaussian
    c.smooth = 0.6  # weight of the surface's smoothness
    c.skin = 1.0  # weight of the likeness of neighbours' colours
    c.alpha = 1.0  # weight of the silhouettes beside the colours
    c.opaque = 0.3  # weight of the wish to be opaque
    c.widest = 1.5  # largest standard deviation in the surface
    c.narrowest = 0.3  # smallest one
    c.thickness = 0.4  # largest one across the surface
    c.colours_of_cameras = True  # learn a gain and an offset of each camera's colours
    return c.lock()


def film() -> ConfigDict:
    """How one set of Gaussians is followed through the frames (docs/fit.md, "A film")."""
    c = ConfigDict()
    c.identity = False  # follow one set; False = every frame has Gaussians of its own
    c.truth = common.path()  # truth.npz of a procedural recording: the report tells the error
    c.nodes = 256  # control nodes on the skin
    c.coarse_steps = 30  # of a frame, in pictures of half the size
    c.fine_steps = 60  # then in full size
    c.rigid = 1.0  # weight of local rigidity
    c.trust = 0.9  # share of the last motion that the next frame is expected to repeat
    c.loss = 0.03  # IoU of the given views below the set's own frame: then identity ends
    c.loss_db = 6.0  # the same in dB inside the animal
    return c.lock()
