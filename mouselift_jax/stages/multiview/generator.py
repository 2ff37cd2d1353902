"""What `synth` and `infer` share: views of a picture with the cameras that they show."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.inputs import must_exist
from mouselift_jax.data.samples.rig_file import WARN_SPREAD_PX, load_rig
from mouselift_jax.diffusion.sampler import check_sampling
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.geometry.median_rig import Rig
from mouselift_jax.pipelines.views import Models, camera_poses, load_models, sample_views
from mouselift_jax.runs.record import read_json
from mouselift_jax.stages.multiview.frozen import are_toys
from mouselift_jax.stages.multiview.watchdogs import check_prompts
from mouselift_jax.weights.pretrained import load_pretrained, read_config

log = logging.getLogger("mouselift_jax")
TOYS = (
    "toy weights: {source} was trained without released networks, on a toy autoencoder and a "
    "random image encoder. Its views show that this stage works and mean nothing"
)


@dataclasses.dataclass
class Generator:
    """A network that makes views, with its prompts and the rig that it learned.

    Attributes:
        models: networks.
        prompts: [V,T,C].
        rig: cameras of the slots, of pictures of the network's size.
        note: how the rig was found.
        reference: fixed | random: which views it was trained to take as reference.
        subject_share: of the side of slot 0's pictures, that the subject took in training; None
            where that is not known.
        subject_centre: box | centroid: what of its silhouette lay in the middle of them.
        generate: the config section `generate`.
        seed: of the run.
    """

    models: Models
    prompts: np.ndarray
    rig: Rig
    note: str
    reference: str
    subject_share: float | None
    subject_centre: str
    generate: Any
    seed: int

    @property
    def side(self) -> int:
        """Pixels along a side of the views."""
        return self.models.networks.picture_side

    @property
    def posed(self) -> bool:
        """Whether the network is told the cameras."""
        return bool(self.models.networks.unet.config.pose_features)

    def views(
        self, picture: np.ndarray, key: tuple[int, ...], *, order: Any = None, cameras: Any = None
    ) -> np.ndarray:
        """Views [V,H,W,3] of an 8-bit picture on white.

        Args:
            picture: square, uint8.
            key: numbers that seed the noise: the same for the same picture, whatever the run skips.
            order: slots of the prompts in the order of the views; None = as they are.
            cameras: [V] the views shall show; only for a posed network.
        """
        rng = jax.random.key(self.seed)
        for number in key:
            rng = jax.random.fold_in(rng, number)
        poses = None
        if self.posed:
            poses = camera_poses(self.rig.cameras if cameras is None else cameras)
        return sample_views(
            self.models,
            picture,
            self.prompts if order is None else self.prompts[np.asarray(order)],
            steps=self.generate.steps,
            guidance=self.generate.guidance,
            eta=self.generate.eta,
            rng=rng,
            poses=poses,
        )


def check_generate(generate: Any) -> None:
    """Whether the numbers of the config section `generate` make sense, before weights are read.

    Raises:
        ConfigError: one is out of its range.
    """
    check_sampling(generate.steps, generate.guidance, generate.eta, section="config.generate.")
    if not 0 < generate.white <= 1:
        raise ConfigError(
            "the brightness from which generated pixels are background is out of range",
            where="config.generate.white",
            expected="above 0, up to 1",
            found=generate.white,
            fix="--config.generate.white=0.94",
        )


def picture_side(mvdiff: Any) -> int:
    """Pixels along a side of the views that a network makes, without reading its weights."""
    vae = read_config(mvdiff, "vae")
    return read_config(mvdiff, "unet")["sample_size"] * 2 ** (len(vae["block_channels"]) - 1)


def make_generator(config: Any, warn: Any = log.warning) -> Generator:
    """Load everything that makes views.

    Args:
        config: of `synth` or `infer`: mvdiff, cameras, prompt_embeds, dtype, generate, seed.
        warn: tells the user what lowers the quality.

    Raises:
        ConfigError: prompts that do not fit the network.
        LayoutError: no cameras.
    """
    check_generate(config.generate)
    source = must_exist(config.mvdiff, "mvdiff")
    file = Path(config.cameras or source / "cameras.json")
    if not config.cameras and not file.exists():
        raise LayoutError(
            "it is not known which cameras the generated views show",
            where=file,
            expected="cameras.json beside the weights, as mvdiff runs write it",
            fix="--config.cameras=FILE (an opencv_cameras.json of a training sample)",
        )
    rig, note = load_rig(file)
    log.info("cameras: %s", note)
    models = load_models(source, dtype=jnp.dtype(config.dtype), checkpoint=config.mvdiff_checkpoint)
    if not config.cameras:
        models = dataclasses.replace(models, rig=rig.cameras)
    networks = models.networks
    _, prompts = load_pretrained(config.prompt_embeds or source, "prompt_embeds")
    prompts = np.asarray(prompts, np.float32)
    unet = networks.unet.config
    for alarm in check_prompts(prompts, unet.n_views, unet.context_dim):
        raise ConfigError(
            alarm.what, where="config.prompt_embeds", found=alarm.cause, fix=alarm.remedy
        )
    if rig.cameras.batch_shape[0] != unet.n_views:
        raise LayoutError(
            "the camera file has another number of views",
            where=file,
            expected=unet.n_views,
            found=rig.cameras.batch_shape[0],
            fix="give the cameras of a sample with as many views as the network makes",
        )
    if rig.cameras.width != networks.picture_side:
        side = networks.picture_side
        rig = dataclasses.replace(rig, cameras=rig.cameras.resized(side, side)[0])
    if are_toys(source):
        warn(TOYS.format(source=source))
    spread = float(np.max(rig.spread_px))
    if spread > WARN_SPREAD_PX and not unet.pose_features:
        warn(
            f"the cameras this network was trained on spread by {spread:.1f} px around one rig: "
            "its views disagree with the cameras written beside them by about as much"
        )
    record = read_json(Path(source) / "config.json") or {}
    reference = record.get("reference", "fixed")
    about = read_json(file)
    return Generator(
        models,
        prompts,
        rig,
        note,
        reference,
        about.get("subject_share"),
        about.get("subject_centre") or "box",
        config.generate,
        config.seed,
    )
