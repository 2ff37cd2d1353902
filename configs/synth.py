"""Make samples of views that no camera took, from fits or by a network.

    python launch.py --config=configs/synth.py --config.fits=runs/fit \
        --config.rig=canonical --workdir=runs/synth
    python launch.py --config=configs/synth.py --config.mvdiff=runs/mvdiff \
        --config.samples=runs/prepare --workdir=runs/synth

From fits, every fitted frame is drawn from one rig, the same for all samples, and from further
cameras behind it: sets for mvdiff (it learns one rig) and for gslrm (any number of views). By a
network, every picture of a sample set becomes six views. Both are ordinary sample sets and keep the
split of their source, so no frame is on both sides.

variant    what                                            time, memory
base       fits: 32 views at 512 px; network: slot 0 of    fits: 1 s a frame, 1 GB (2 CPU cores);
           every sample is the reference                   network: not measured yet
all_views  every view in turn (a network trained six_x)    not measured yet
tiny       few steps, for toy networks                     minutes on 2 CPU cores; less than 2 GB
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "base": {},
    "all_views": {"references": "all"},
    "tiny": {"generate.steps": 8, "dtype": "float32", "limit": 8, "size": 64, "zoom": 1.5,
             "further": 4},
}  # fmt: skip


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("synth")
    with c.unlocked():
        c.mvdiff = common.path()  # a mvdiff run, or a converted pipeline with --config.cameras
        c.mvdiff_checkpoint = "best"  # best | newest | STEP: of a run, which checkpoint
        c.samples = common.path()  # sample set whose pictures are the references; with fits: where
        # the samples that were fitted are now, if they were moved
        c.fits = common.path()  # or a run of fit: its frames are drawn from `rig`
        c.rig = "canonical"  # name in data/rigs, or a camera file; with fits
        c.further = 26  # cameras behind the rig's, the same for all samples
        c.elevations = (0.0, 60.0)  # degrees: the belt that they are spread over
        c.size = 512  # pixels of views drawn from fits
        c.zoom = 1.0  # their focal lengths in units of the rig's; above 1 the animal is larger
        c.heading = "front"  # front: the animal faces slot 0 | random | none: as it was fitted
        c.reference = "rendered"  # rendered | real: slot 0 is the real picture nearest there
        c.least_iou = 0.85  # fits whose hidden cameras' silhouette IoU is below are left out
        c.render = common.path()  # implementation of the rasterizer; None = the best here
        c.prompt_embeds = common.path()  # folder of prompt embeddings; default: mvdiff's
        c.cameras = common.path()  # file with the cameras of the views; default: mvdiff's
        c.references = "0"  # slots that serve as reference, "0" or "0,2,4", or all
        c.split = "all"  # all | train | val: of the source
        c.frames = ""  # a:b:step, frame numbers of the recording; "" = all
        c.limit = 0  # > 0: only the first so many samples
        c.dtype = "bfloat16"  # bfloat16 | float32: of weights and products
        c.generate = generate()
    return common.variant(c, variant, VARIANTS)


def generate() -> ConfigDict:
    """How views are generated."""
    c = ConfigDict()
    c.steps = 50  # of the sampler
    c.guidance = 3.0  # how far away from what no prompt and picture would make; 1 = off
    c.eta = 1.0  # 1 = as much noise as DDPM, 0 = deterministic
    c.keep_reference = True  # slot 0 is the reference picture itself, with its own camera
    c.white = 0.94  # generated pixels at least this bright in every channel are background
    return c.lock()
