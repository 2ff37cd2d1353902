"""Pictures to 3D Gaussians: a PLY, a turntable, pictures and a report.

    python launch.py --config=configs/infer.py --config.samples=runs/prepare \
        --config.gslrm=runs/gslrm --config.frames=0:100:10 --workdir=runs/infer
    python launch.py --config=configs/infer.py --config.image=mouse.png \
        --config.mvdiff=runs/mvdiff --config.gslrm=runs/gslrm --workdir=runs/infer

Give `samples` (real views of six cameras, cut out by `prepare`) or `image` (a photo or a folder of
photos; six views are generated first), not both. One item writes splats.ply, views.png and
turntable.mp4 into the workdir; several write them into items/<id>/.

variant   what                                       hours, memory
base      512 px turntable of 150 pictures           not measured yet
head      human heads with released weights, as      not measured yet
          published; needs face_box and [matte]
tiny      128 px turntable of 24 pictures, CPU       minutes on 2 cores
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from configs import common

RIG = Path(__file__).resolve().parents[1] / "data/rigs/canonical.json"  # from any folder

VARIANTS = {
    "base": {},
    "head": {
        "dtype": "float32",
        "filter": "head",
        "cameras": str(RIG),
        "generate.place": "face",
        "generate.background": "rembg",
        "generate.keep_reference": False,
        "size": 512,
        "turntable.elevation_deg": 0.0,
    },
    "tiny": {
        "dtype": "float32",
        "turntable.frames": 24,
        "turntable.size": 128,
        "generate.steps": 4,
    },
}


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("infer")
    with c.unlocked():
        c.image = common.path()  # a photo, or a folder of photos
        c.samples = common.path()  # sample set, or the folder of a run that wrote one
        c.gslrm = common.path()  # weights that lift views to Gaussians: run or converted
        c.gslrm_checkpoint = "best"  # best | newest | STEP: of a run, which checkpoint
        c.face_box = ""  # head: x0,y0,x1,y1 in pixels of the photo, or a JSON file {photo: [...]}
        c.mvdiff = common.path()  # weights that generate views: run or converted; with image
        c.mvdiff_checkpoint = "best"  # best | newest | STEP: of a run, which checkpoint
        c.cameras = common.path()  # file with the cameras of the generated views; default: mvdiff's
        c.prompt_embeds = common.path()  # array of prompt embeddings; default: mvdiff's
        c.split = "all"  # all | train | val: which samples
        c.frames = ""  # a:b:step, frame numbers of the recording; "" = all of the split
        c.limit = 0  # > 0: only the first so many items
        c.views = ()  # camera numbers that are looked at at all; () = all of a sample's
        c.heldout_cameras = ()  # camera numbers that the network must not see; they judge it
        c.size = (
            0  # pixels of the network's pictures; 0 = what the run was trained on, or as stored
        )
        c.dtype = "bfloat16"  # bfloat16 | float32: of the matrix products
        c.sequence = True  # several frames also become videos, motion.csv (mm) and sequence.html
        c.filter = "mouse"  # mouse | head | none: which Gaussians are left out of the PLY
        c.axes = "opencv"  # axes of the PLY
        c.render = common.path()  # implementation of the rasterizer; None = the best here
        c.refine = refine()
        c.turntable = turntable()
        c.generate = generate()
    return common.variant(c, variant, VARIANTS)


def turntable() -> ConfigDict:
    """The video that goes once round."""
    c = ConfigDict()
    c.frames = 150  # pictures of one turn; 0 = no video
    c.size = 512  # pixels
    c.fps = 30  # pictures a second
    c.elevation_deg = 20.0  # of the camera that goes round
    return c.lock()


def refine() -> ConfigDict:
    """Fitting the network's splats further to the views it was given, as configs/fit.py does."""
    c = ConfigDict()
    c.steps = 0  # 0 = off; some 100 make them sharp
    c.generated = False  # also on views that a network generated from a photo
    return c.lock()


def generate() -> ConfigDict:
    """How views are generated from a photo."""
    c = ConfigDict()
    c.steps = 50  # of the sampler
    c.guidance = 3.0  # how far away from what no prompt and picture would make; 1 = off
    c.eta = 1.0  # 1 = as much noise as DDPM, 0 = deterministic
    c.background = "auto"  # auto | alpha | plain | rembg: how the animal is parted from the rest
    c.place = (
        "animal"  # animal: centred, `fill` of the side | face: by face_box, as released weights
    )
    c.fill = 0.0  # share of the side that the animal's longer side fills; 0 = as in training
    c.keep_reference = True  # slot 0 is the photo itself
    c.white = 0.94  # generated pixels at least this bright in every channel are background
    return c.lock()
