"""How good is it on views it has not seen: held-out cameras, intervals, baselines.

    python launch.py --config=configs/eval.py --config.samples=runs/prepare \
        --config.gslrm=runs/gslrm --workdir=runs/eval

Each camera in turn is held out: the others are lifted, the held-out one is drawn and compared with
its picture. Two baselines get the same inputs: the visual hull painted with the pictures' colours,
and the nearest input picture as it is. Means come with 95 % bootstrap intervals over frames.
Writes scores.csv (one row a frame, camera and method), summary.json, report.html.

variant   what                             hours, memory
base      every validation sample          not measured yet
tiny      12 samples, float32, CPU         minutes on 2 cores at 64 px; memory not measured yet
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

VARIANTS = {"base": {}, "tiny": {"limit": 12, "dtype": "float32"}}


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("eval")
    with c.unlocked():
        c.samples = common.path()  # sample set, or the folder of a run that wrote one
        c.gslrm = common.path()  # weights to judge: run or converted
        c.gslrm_checkpoint = "best"  # best | newest | STEP: of a run, which checkpoint
        c.heldout = common.path()  # folder frame_%06d/ of extra cameras; default: leave one out
        c.split = "val"  # val | train | all
        c.frames = ""  # a:b:step, frame numbers of the recording; "" = all of the split
        c.limit = 0  # > 0: so many samples, spread evenly over time
        c.heldout_cameras = ()  # camera numbers held out in turn; () = every camera
        c.n_inputs = 0  # views given to the network; 0 = what the run was trained with
        c.size = 0  # pixels of the pictures; 0 = what the run was trained on, or as stored
        c.dtype = "bfloat16"  # bfloat16 | float32: of the matrix products
        c.baselines = True  # also judge the visual hull and the nearest view
        c.block_s = 1.0  # frames of so many seconds are drawn together in the bootstrap
        c.pictures = 3  # best and worst samples shown, each
        c.render = common.path()  # implementation of the rasterizer; None = the best here
    return common.variant(c, variant, VARIANTS)
