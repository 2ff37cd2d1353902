"""Train GS-LRM: posed views to 3D Gaussians.

    python launch.py --config=configs/gslrm.py --config.samples=runs/prepare --workdir=runs/gslrm

variant        what                                   memory of a device, compiled for an H100
base           the paper's last stage, for six-camera  7.8 GiB: 1 sample a step; 11.8 GiB: 2;
               recordings: 512 px, batch 16            5.3 GiB: 1, fsdp=4
pretrain_256   the paper's first stage: 256 px, from   6.1 GiB: 1 sample
               random weights
pretrain_512   the paper's second stage                7.9 GiB: 1 sample
lowmem         one 24 GB card: 384 px, LoRA            3.4 GiB: 1 sample
tiny           2 CPU cores: 128 px, 0.5 M weights      7 steps/s, 1.3 GB of the process

How each figure was come by: docs/scaling.md. Hours are known for `tiny` only (minutes).

Start from published weights with --config.init_from=DIR (converted, or the folder of a run).
`--config.overfit=N` trains on N samples to check that data and cameras agree: training views
must become sharp within minutes, else the cameras are wrong.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, models

VARIANTS = {
    "base": {},
    "pretrain_256": {
        "data.size": 256,
        "data.n_views": 8,
        "data.n_inputs": 4,
        "data.policy": "overlap",
        "train.steps": 80_000,
        "train.batch_size": 64,
        "train.optim.lr": 4e-4,
        "train.optim.warmup_steps": 2000,
        "loss.l2_warmup_steps": 5000,
        "loss.points_warmup_steps": 1000,
    },
    "pretrain_512": {"data.n_views": 8, "data.n_inputs": 4, "data.policy": "overlap"},
    "lowmem": {
        "data.size": 384,
        "train.batch_size": 4,
        "train.accum_steps": 4,
        "train.optim.lr": 2e-4,
        "loss.perceptual": 0.0,
        "loss.ssim": 0.2,
        "lora.rank": 16,
    },
    "tiny": {
        "model.width": 96,
        "model.head_dim": 32,
        "model.n_layers": 3,
        "model.depth": "hull",  # silhouettes bound the surface: depth need not be learned from 0
        "model.depth_bias": -1.5,
        "model.log_scale_bias": -4.2,  # half a pixel of 128 on the subject: larger is haze,
        "model.min_log_scale": -4.5,  # smaller is dust in sharper pictures
        "model.opacity_bias": 0.5,  # white starts transparent, the animal opaque
        "model.pixel_skip": True,
        "model.animal_share": 0.25,
        "data.size": 128,
        "train.steps": 300,
        "train.batch_size": 1,
        "train.dtype": "float32",
        "train.log_every": 10,
        "train.eval_every": 0,
        "train.picture_every": 0,
        "train.save_every": 50,
        "train.optim.lr": 1e-3,
        "train.optim.warmup_steps": 20,
        "loss.perceptual": 0.0,
        "loss.l2_warmup_steps": 0,
        "loss.masked": True,
        "loss.alpha": 1.0,
    },
}


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("gslrm")
    with c.unlocked():
        c.samples = common.path()  # sample set, or the folder of a prepare or synth run
        c.init_from = common.path()  # weights to start from: converted, or a gslrm run
        c.init_checkpoint = (
            "best"  # best | newest | STEP: where init_from is a run, which checkpoint
        )
        c.perceptual_from = common.path()  # folder with vgg19 / lpips; default: init_from
        c.overfit = 0  # > 0: train and evaluate on the first so many samples, fixed input views
        c.model = models.gslrm("paper")
        c.data = data()
        c.loss = loss()
        c.lora = common.lora()
        c.train = common.training()
        c.eval_samples = 32  # samples of the validation split that are evaluated
        c.render = common.path()  # implementation of the rasterizer; None = the best here
    c.train.steps = 20_000
    c.train.batch_size = 16
    c.train.keep_best = "heldout/psnr"
    return common.variant(c, variant, VARIANTS)


def data() -> ConfigDict:
    """Which pictures of a sample are seen."""
    c = ConfigDict()
    c.size = 512  # pixels; stored pictures are resized with their cameras
    c.n_views = 6  # views of a sample in a batch
    c.n_inputs = 5  # of them, the first so many go into the network; the rest are held out
    c.policy = "random"  # all | first | random | overlap: which views, anew for every step
    c.heldout_cameras = ()  # camera numbers never trained on; when given, evaluation is on them
    c.background = "white"  # white | black | gray | random | three_choices
    c.brightness = 0.0  # the animal's colours are multiplied by 1 +- this
    c.contrast = 0.0  # and their distance to their mean
    c.hflip = 0.0  # probability of mirroring pictures, cameras and world
    c.workers = 0  # processes that read samples; 0 = threads of this one
    return c.lock()


def loss() -> ConfigDict:
    """Weights of the terms; the names are those of LossConfig."""
    c = ConfigDict()
    c.l2 = 1.0  # squared error
    c.ssim = 0.0  # 1 - SSIM
    c.perceptual = 0.5  # VGG-19 features; needs converted weights
    c.lpips = 0.0  # LPIPS-VGG; needs converted weights
    c.alpha = 0.0  # squared error of opacity against the mask
    c.background = 0.0  # squared error against white outside the mask
    c.pixelalign = 0.0  # distance of Gaussians from their pixel's ray
    c.pointsdist = 0.0  # distances from the camera against standardised ones
    c.random_background = False  # renders and targets on a random colour; inputs stay on white
    c.masked = False  # l2 and ssim inside the mask only
    c.clamp = False  # renders are clamped to [0,1] first
    c.l2_warmup_steps = 500  # perceptual and lpips are off before
    c.points_warmup_steps = 0  # only geometry terms count before
    return c.lock()
