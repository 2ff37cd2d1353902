"""Fine-tune the multi-view diffusion network: one picture becomes six.

    python launch.py --config=configs/mvdiff.py --config.samples=runs/prepare \
        --config.init_from=DIR_OF_CONVERTED_PIPELINE --workdir=runs/mvdiff

variant    what                                            hours, memory
base       mouse fine-tune: batch 16 (4 x 4), 512 px       19.6 GiB with 1 object a step (compiled
                                                           for an H100, never run)
facelift   the paper's: batch 128, learning rate 1e-4      not measured yet
six_x      every view in turn is the reference             not measured yet
lowmem     one 24 GB card: 256 px, LoRA, batch 8 in        4.0 GiB (compiled for an H100)
           single steps, encodings cached
posed      with the cameras as an input                    not measured yet
tiny       toy networks on 2 CPU cores, from nothing       4 minutes; 2.8 GB

Variants can be joined: --config=configs/mvdiff.py:lowmem,posed. `train.steps` of 1,000 to 1,500
were enough on mice for others, with the released prompts and a fixed reference. Samples: prepare
with aim=centre (base does; tiny needs --config.prepare.aim=centre --config.prepare.subject_mm=220).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, models

VARIANTS = {
    "base": {},
    "facelift": {
        "train.batch_size": 128,
        "train.accum_steps": 2,
        "train.optim.lr": 1e-4,
        "data.brightness": 0.0,
        "data.contrast": 0.0,
    },
    "six_x": {"reference": "random"},
    "lowmem": {
        "data.size": 256,
        "train.batch_size": 8,
        "train.accum_steps": 8,
        "train.steps": 10_000,
        "train.optim.lr": 1e-4,
        "lora.rank": 16,
        "cache.enabled": True,
        "cache.jitter_draws": 2,
    },
    "posed": {"model.pose_features": 256},
    "tiny": {
        **{f"model.{k}": v for k, v in models.MVUNET["testing"].items()},
        "toy.vae_steps": 300,
        "data.size": 64,
        "data.background": "white",
        "data.brightness": 0.0,
        "data.contrast": 0.0,
        "cache.enabled": True,
        "frozen_dtype": "float32",
        "train.steps": 200,
        "train.batch_size": 4,
        "train.accum_steps": 1,
        "train.dtype": "float32",
        "train.remat": "none",
        "train.log_every": 10,
        "train.eval_every": 50,
        "train.picture_every": 0,
        "train.save_every": 50,
        "train.optim.lr": 2e-3,
        "eval.samples": 2,
        "eval.steps": 10,
    },
}


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant."""
    c = common.stage("mvdiff")
    with c.unlocked():
        c.samples = common.path()  # sample set, or the folder of a prepare run
        c.init_from = common.path()  # converted pipeline, or a mvdiff run
        c.init_checkpoint = (
            "best"  # best | newest | STEP: where init_from is a run, which checkpoint
        )
        c.prompt_embeds = common.path()  # folder of prompt embeddings; default: of init_from
        c.perceptual_from = common.path()  # folder with lpips; given: validation reports it too
        c.reference = "fixed"  # fixed: slot 0 | random: any view, the others clockwise from it
        c.frozen_dtype = "bfloat16"  # of autoencoder and image encoder
        c.model = models.mvunet("paper")
        c.data = data()
        c.loss = loss()
        c.lora = common.lora()
        c.cache = cache()
        c.toy = toy()
        c.eval = evaluation()
        c.train = common.training()
    c.train.steps = 20_000
    c.train.batch_size = 16
    c.train.accum_steps = 4
    c.train.ema_decay = 0.9999
    c.train.ema_warmup = True
    c.train.eval_every = 500
    c.train.picture_every = 0
    c.train.optim.lr = 5e-5
    c.train.optim.warmup_steps = 0
    c.train.optim.end_lr_fraction = 1.0  # constant
    c.train.optim.b2 = 0.999
    c.train.optim.weight_decay = 0.01
    c.train.optim.decay_all = True
    c.train.optim.skip_factor = 0.0
    return common.variant(c, variant, VARIANTS)


def data() -> ConfigDict:
    """Which pictures are seen."""
    c = ConfigDict()
    c.size = 512  # pixels; stored pictures are resized with their cameras
    c.background = "three_choices"  # white | black | gray | three_choices | random
    c.brightness = 0.1  # the animal's colours are multiplied by 1 +- this
    c.contrast = 0.1  # and their distance to their mean
    c.workers = 0  # processes that read samples; 0 = threads of this one
    return c.lock()


def loss() -> ConfigDict:
    """The names are those of DiffusionLossConfig."""
    c = ConfigDict()
    c.drop_rate = 0.05  # of each kind of condition dropout: label, label and picture, picture
    c.snr_gamma = 5.0  # cap of the signal-to-noise ratio in the weights; inf = no weights
    c.snr_form = "epsilon"  # epsilon: as the released network | v: the paper's for v-prediction
    return c.lock()


def cache() -> ConfigDict:
    """Encodings of the frozen networks on disk, so that steps need not repeat them."""
    c = ConfigDict()
    c.enabled = False  # encode all pictures once, into a folder, before training
    c.dir = common.path()  # where; default: cache/ of the workdir
    c.jitter_draws = 0  # stored draws of brightness and contrast of each sample and background
    return c.lock()


def toy() -> ConfigDict:
    """Toy networks, made by the run itself when there is no init_from."""
    c = ConfigDict()
    c.vae_steps = 0  # steps of the toy autoencoder; 0 = no toys: init_from is needed
    c.vae_lr = 3e-3  # learning rate of the toy autoencoder
    c.vae_kl = 1e-5  # weight of the divergence of its latents from unit noise
    c.vae = ConfigDict()  # the names are those of VAEConfig
    c.vae.block_channels = (8, 16, 16)  # of each resolution, from fine to coarse
    c.vae.layers_per_block = 1  # residual blocks at each resolution
    c.vae.norm_groups = 4  # of the group norms
    return c.lock()


def evaluation() -> ConfigDict:
    """Validation by sampling."""
    c = ConfigDict()
    c.samples = 8  # of the validation split
    c.guidances = (1.0, 3.0)  # the last one's figures are called val/psnr and val/ssim
    c.steps = 20  # of the sampler
    c.eta = 1.0  # 1 = as much noise as DDPM, 0 = deterministic
    return c.lock()
