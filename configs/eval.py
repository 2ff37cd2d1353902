"""How good is it on views it has not seen: hidden cameras, intervals, baselines.

    python launch.py --config=configs/eval.py --config.samples=runs/prepare \
        --config.gslrm=runs/gslrm --workdir=runs/eval
    python launch.py --config=configs/eval.py --config.samples=runs/prepare \
        --config.methods=fit,hull --config.limit=4 --workdir=runs/eval_fit

Each camera in turn is hidden and drawn from the others, by every method of `methods`: the network,
the fit (each frame from its own hull), the visual hull painted with the pictures' colours, and the
nearest picture as it is. All but the network get the pictures as they are stored, and all are
judged on these. Means come with 95 % bootstrap intervals over frames. Without `gslrm` the network
is left out. Writes scores.csv (one row a frame, camera and method), summary.json, report.html.

variant   what                             hours, memory
base      every validation sample          with fit: some ten seconds of processor time a frame and
                                           camera (docs/fit.md); memory not measured
tiny      12 samples, float32, fit:fast    minutes on 2 cores at 64 px; memory not measured yet
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, fit

VARIANTS = {
    "base": {},
    "tiny": {"limit": 12, "dtype": "float32",
             **{k: v for k, v in fit.VARIANTS["fast"].items() if k.startswith("fit.")}},
}  # fmt: skip


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("eval")
    with c.unlocked():
        c.samples = common.path()  # sample set, or the folder of a run that wrote one
        c.methods = "gslrm,fit,hull,nearest"  # the first is what the run is about
        c.gslrm = common.path()  # weights to judge: run or converted; without, no network is judged
        c.gslrm_checkpoint = "best"  # best | newest | STEP: of a run, which checkpoint
        c.heldout = common.path()  # folder frame_%06d/ of extra cameras; default: leave one out
        c.split = "val"  # val | train | all
        c.frames = ""  # a:b:step, frame numbers of the recording; "" = all of the split
        c.limit = 0  # > 0: so many samples, spread evenly over time
        c.heldout_cameras = ()  # camera numbers held out in turn; () = every camera
        c.n_inputs = 0  # views given to every method; 0 = what the network was trained with, or all
        c.size = 0  # pixels of the network's pictures; 0 = what it was trained on, or as stored
        c.dtype = "bfloat16"  # bfloat16 | float32: of the matrix products
        c.block_s = 1.0  # frames of so many seconds are drawn together in the bootstrap
        c.pictures = 3  # best and worst samples shown, each
        c.render = common.path()  # implementation of the rasterizer; None = the best here
        c.fit = fit.fit()
    return common.variant(c, variant, VARIANTS)
