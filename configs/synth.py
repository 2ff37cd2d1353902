"""Make samples of generated views: every picture of a sample set becomes six views.

    python launch.py --config=configs/synth.py --config.mvdiff=runs/mvdiff \
        --config.samples=runs/prepare --workdir=runs/synth

The result is an ordinary sample set: --config.samples=runs/synth of gslrm and infer. It keeps the
split of its source, so no frame is on both sides.

variant    what                                            time, memory
base       slot 0 of every sample is the reference         not measured yet
all_views  every view in turn (a network trained six_x)    not measured yet
tiny       few steps, for toy networks                     minutes on 2 CPU cores; less than 2 GB
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "base": {},
    "all_views": {"references": "all"},
    "tiny": {"generate.steps": 8, "dtype": "float32", "limit": 8},
}


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("synth")
    with c.unlocked():
        c.mvdiff = common.path()  # a mvdiff run, or a converted pipeline with --config.cameras
        c.mvdiff_checkpoint = "best"  # best | newest | STEP: of a run, which checkpoint
        c.samples = common.path()  # sample set whose pictures are the references
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
    c.guidance = 3.0
    c.eta = 1.0  # 1 = as much noise as DDPM, 0 = deterministic
    c.keep_reference = True  # slot 0 is the reference picture itself, with its own camera
    c.white = 0.94  # generated pixels at least this bright in every channel are background
    return c.lock()
