"""One picture -> the views of a rig: image encoder, autoencoder and UNet, sampled by DDIM.

The sampling loop is compiled once for a number of steps and a picture size, whatever the picture,
prompts, guidance and draws. Every picture of a batch runs through the same program by itself, so
its views are the same alone and in company, to the bit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.crop import resize
from mouselift_jax.data.samples.rig_file import load_rig
from mouselift_jax.diffusion import schedule
from mouselift_jax.diffusion.sampler import Steps, check_sampling, ddim, guide, sampling_steps
from mouselift_jax.errors import CheckpointError, ConfigError, ShapeError, TrainingError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import azimuth_elevation
from mouselift_jax.models.clip import ImageEncoder, ImageNormalizer
from mouselift_jax.models.clip_pixels import ClipPixels, clip_pixels, to_uint8
from mouselift_jax.models.mvunet import MVUNet
from mouselift_jax.models.unet_blocks import sinusoid
from mouselift_jax.models.vae import VAE
from mouselift_jax.weights.pretrained import load_pretrained

NETWORKS = ("unet", "vae", "image_encoder", "image_normalizer")
NOISE_LEVEL = 0  # of the image embedding; the released model knows no other


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules and settings, without weights: hashable, so that programs are compiled once."""

    unet: MVUNet
    vae: VAE
    image_encoder: ImageEncoder
    image_normalizer: ImageNormalizer
    clip: ClipPixels = ClipPixels()
    latent_noise: schedule.ScheduleConfig = schedule.LATENT_NOISE
    image_noise: schedule.ScheduleConfig = schedule.IMAGE_NOISE

    @property
    def latent_side(self) -> int:
        """Latent pixels along a side of a generated view."""
        return self.unet.config.sample_size

    @property
    def picture_side(self) -> int:
        """Pixels along a side of a generated view."""
        return self.latent_side * self.vae.config.downscale


@dataclasses.dataclass(frozen=True)
class Models:
    """Everything that makes views of a picture.

    Attributes:
        networks: modules and settings.
        params: weights by component: unet, vae, image_encoder, image_normalizer.
        rig: the cameras that the views show, where the weights come with them, else None.
        source: where the weights came from.
    """

    networks: Networks
    params: Mapping[str, Any]
    rig: Camera | None = None
    source: str = ""


def load_models(
    directory: str | Path, *, dtype: Any = jnp.float32, checkpoint: str | int = "best"
) -> Models:
    """Load networks, schedules and preprocessing of a converted pipeline or of a mvdiff run.

    Args:
        directory: the folder.
        dtype: of weights and computation.
        checkpoint: of a run: best | newest | STEP.

    Raises:
        CheckpointError: something is missing.
        ConfigError: a schedule's settings do not fit the sampler.
    """
    root = Path(directory)
    if not root.is_dir():
        raise CheckpointError("There is no such folder", where=root, fix="check the path")
    modules, params = {}, {}
    for name in NETWORKS:
        modules[name], params[name] = load_network(root, name, dtype, checkpoint)
    rig = load_rig(root / "cameras.json")[0].cameras if (root / "cameras.json").exists() else None
    return Models(Networks(**modules, **read_settings(root)), params, rig, str(root))


def load_network(
    root: str | Path, name: str, dtype: Any, checkpoint: str | int = "best"
) -> tuple[Any, Any]:
    """A network of a pipeline with its weights, in `dtype`.

    The normaliser stays float32: in half precision level 0 has no noise at all.
    """
    return load_pretrained(root, name, dtype=network_dtype(name, dtype), checkpoint=checkpoint)


def network_dtype(name: str, dtype: Any) -> Any:
    """The type that a pipeline's network is kept in."""
    return jnp.float32 if name == "image_normalizer" else dtype


def read_settings(root: str | Path) -> dict[str, Any]:
    """Schedules and preprocessing of a pipeline's folder: `Networks`' keyword arguments."""
    where = Path(root) / "scheduler/scheduler_config.json"
    return {
        "latent_noise": schedule.config_from_source(_read(where), str(where)),
        "image_noise": schedule.noise_config(
            _read(Path(root) / "image_noising_scheduler/scheduler_config.json")
        ),
        "clip": ClipPixels.from_source(
            _read(Path(root) / "feature_extractor/preprocessor_config.json")
        ),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise CheckpointError(
            "A settings file of the pipeline is missing or damaged",
            where=path,
            fix="convert the whole pipeline: tools/convert_torch_ckpt.py mvdiffusion SRC DST",
        ) from error


def camera_poses(cameras: Camera) -> np.ndarray:
    """Azimuth, elevation (radians), radius (scene units), focal length (picture widths): [*B,V,4].

    Azimuths are taken relative to the reference view's, slot 0, for only those can be learned.
    """
    c2w, K = np.asarray(cameras.c2w), np.asarray(cameras.K)
    azimuth, elevation = (np.deg2rad(a) for a in azimuth_elevation(c2w))
    azimuth = np.asarray(azimuth)
    radius = np.linalg.norm(c2w[..., :3, 3], axis=-1)
    focal = K[..., 0, 0] / cameras.width
    return np.stack([azimuth - azimuth[..., :1], elevation, radius, focal], -1).astype(np.float32)


def class_labels(
    networks: Networks, normalizer: Any, embeds: jax.Array, noise: jax.Array
) -> jax.Array:
    """Noised image embeddings [B,V,D] with the sinusoid of the noise level: [B,V,2D].

    Every view gets noise of its own. At level 0 there is little, but in float32 there is some.
    """
    table = schedule.alpha_bars(networks.image_noise)

    def call(x: jax.Array, method: str) -> jax.Array:
        return networks.image_normalizer.apply({"params": normalizer}, x, method=method)

    embeds = jnp.broadcast_to(embeds.astype(jnp.float32), noise.shape)
    noised = schedule.noise_embedding(call(embeds, "scale"), noise, NOISE_LEVEL, table)
    level = jnp.broadcast_to(
        sinusoid(jnp.float32(NOISE_LEVEL), noise.shape[-1]), (*noise.shape[:-1], noise.shape[-1])
    )
    return jnp.concatenate([call(noised, "unscale"), level], axis=-1)


@functools.partial(jax.jit, static_argnames="networks")
def condition(
    networks: Networks, params: Mapping[str, Any], pixels: jax.Array, picture: jax.Array, noise: Any
) -> tuple[jax.Array, jax.Array]:
    """What the UNet is told about one reference picture.

    Args:
        networks: modules.
        params: their weights.
        pixels: the image encoder's input [s,s,3].
        picture: the picture in [-1,1], [H,W,3].
        noise: of the image embedding, [V,D].

    Returns:
        Class labels [V,2D] and scaled latents of the picture [h,w,4].
    """
    embed = networks.image_encoder.apply({"params": params["image_encoder"]}, pixels[None])
    labels = class_labels(networks, params["image_normalizer"], embed, noise[None])[0]
    mean, _ = networks.vae.apply({"params": params["vae"]}, picture[None], method="encode")
    return labels, mean[0] * networks.vae.config.scaling_factor


class Conditions(NamedTuple):
    """What the UNet is told about one object."""

    labels: Any  # [V,2D]
    latents: Any  # [h,w,4] of the reference picture, scaled
    prompts: Any  # [V,T,C]
    poses: Any = None  # [V,4]


class Settings(NamedTuple):
    """How the sampler runs; arrays, so that other values need no other program."""

    steps: Steps
    guidance: Any
    eta: Any


@functools.partial(jax.jit, static_argnames=("networks", "guided", "trace"))
def sample_latents(
    networks: Networks,
    params: Mapping[str, Any],
    known: Conditions,
    draws: Mapping[str, jax.Array],
    how: Settings,
    *,
    guided: bool,
    trace: bool = False,
) -> jax.Array:
    """The sampling loop for one object: scaled latents [V,h,w,4] (every step's, with `trace`).

    The unconditional half keeps prompts and poses, and has labels and picture latents of zero.
    """
    keep = jnp.array([0.0, 1.0] if guided else [1.0])
    views = known.prompts.shape[0]

    def both(x: jax.Array | None, mask: bool = False) -> jax.Array | None:
        if x is None:
            return None
        x = jnp.broadcast_to(x, (len(keep), *x.shape))
        return x * keep.reshape(-1, *[1] * (x.ndim - 1)) if mask else x

    latents = jnp.broadcast_to(known.latents, (views, *known.latents.shape))
    reference = both(latents, mask=True)
    inputs = (both(known.prompts), both(known.labels, mask=True))
    poses = both(known.poses)

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        sample = jnp.concatenate([both(x), reference], axis=-1)
        times = jnp.full((len(keep),), t)
        v = networks.unet.apply({"params": params["unet"]}, sample, times, *inputs, poses=poses)
        return guide(v[0], v[1], how.guidance) if guided else v[0]

    return ddim(predict, draws["x_T"], draws["z"], how.steps, how.eta, trace=trace)


@functools.partial(jax.jit, static_argnames="networks")
def decode(networks: Networks, params: Mapping[str, Any], latents: jax.Array) -> jax.Array:
    """Scaled latents [V,h,w,4] -> pictures [V,H,W,3] in [0,1]."""
    unscaled = latents / networks.vae.config.scaling_factor
    images = networks.vae.apply({"params": params["vae"]}, unscaled, method="decode")
    return jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)


def draw(networks: Networks, rng: jax.Array, n_views: int, steps: int) -> dict[str, jax.Array]:
    """Every random array of one object's sampling run."""
    side, config = networks.latent_side, networks.vae.config
    shape = (n_views, side, side, config.latent_channels)
    embed, start, later = jax.random.split(rng, 3)
    return {
        "clip_noise": jax.random.normal(embed, (n_views, networks.image_normalizer.embedding_dim)),
        "x_T": jax.random.normal(start, shape),
        "z": jax.random.normal(later, (steps, *shape)),
    }


def sample_views(
    models: Models,
    image: Any,
    prompt_embeds: Any,
    *,
    steps: int = 50,
    guidance: float = 3.0,
    eta: float = 1.0,
    rng: Any = None,
    draws: Mapping[str, Any] | None = None,
    vae_input_dtype: Any = None,
    poses: Any = None,
) -> np.ndarray:
    """Generate the views of every picture.

    Args:
        models: of `load_models`.
        image: uint8, or float in [0,1], [*B,H,W,3], square, already on white; of another size than
            the network's it is resized (to the image encoder it goes as it is).
        prompt_embeds: of each view, [V,T,C], or of each picture too, [*B,V,T,C].
        steps: of the sampler.
        guidance: scale of classifier-free guidance, 0 to 100; 1 = none, at half the cost.
        eta: 0 to 1; 1 = as much fresh noise as ancestral sampling, 0 = deterministic.
        rng: a key, split per picture; or a key for each picture [*B]; or a seed; None = seed 0.
        draws: {clip_noise [*B,V,D], x_T [*B,V,h,w,4], z [steps,*B,V,h,w,4]}: every random array,
            instead of `rng`.
        vae_input_dtype: round the autoencoder's input to this type; the original used float16.
        poses: for a posed network, [V,4] or [*B,V,4] (see `camera_poses`); None = of the cameras
            stored with the weights.

    Returns:
        float32 [*B,V,H,W,3] in [0,1].

    Raises:
        ShapeError: an array of a wrong shape.
        ConfigError: contradictory arguments, or numbers out of their range.
        TrainingError: the networks put out what is no finite number.
    """
    check_sampling(steps, guidance, eta, models.networks.latent_noise)
    image = to_uint8(image)
    batch, pictures = image.shape[:-3], image.reshape(-1, *image.shape[-3:])
    prompts = _prompts(models, prompt_embeds, batch)
    n_views = prompts.shape[1]
    poses = _poses(models, poses, len(pictures), n_views)
    all_draws = _draws(models.networks, rng, draws, batch, n_views, steps)
    plan = jax.tree.map(jnp.asarray, sampling_steps(steps, models.networks.latent_noise))
    how = Settings(plan, jnp.float32(guidance), jnp.float32(eta))
    views = []
    for i, picture in enumerate(pictures):
        pose = None if poses is None else poses[i]
        draws = all_draws(i)
        known = describe(models, picture, prompts[i], pose, draws["clip_noise"], vae_input_dtype)
        found = sample_latents(
            models.networks, models.params, known, draws, how, guided=guidance != 1
        )
        made = np.asarray(decode(models.networks, models.params, found), np.float32)
        _check_finite(np.asarray(found), made, i)
        views.append(made)
    return np.stack(views).reshape(*batch, *views[0].shape)


def _check_finite(latents: np.ndarray, views: np.ndarray, index: int) -> None:
    """Views that are no numbers would be written as empty pictures."""
    for what, values in (("latents", latents), ("views", views)):
        bad = int(np.size(values) - np.isfinite(values).sum())
        if bad:
            raise TrainingError(
                f"the sampled {what} are not finite",
                where=f"picture {index}",
                expected=f"{np.size(values):,} finite values",
                found=f"{bad:,} are not",
                fix="float32 instead of half precision; else the weights are broken: another run "
                "or another checkpoint",
            )


def describe(
    models: Models,
    picture: np.ndarray,
    prompts: jax.Array,
    poses: Any,
    clip_noise: jax.Array,
    vae_input_dtype: Any = None,
) -> Conditions:
    """What the UNet is told about one 8-bit picture; see `sample_views`."""
    networks, params = models.networks, models.params
    pixels = jnp.asarray(clip_pixels(picture, networks.clip))
    scaled = fit_picture(picture, networks.picture_side).astype(np.float32) / 255 * 2 - 1
    if vae_input_dtype is not None:
        scaled = np.asarray(jnp.asarray(scaled, vae_input_dtype).astype(jnp.float32))
    labels, latents = condition(networks, params, pixels, jnp.asarray(scaled), clip_noise)
    return Conditions(labels, latents, prompts, poses)


def fit_picture(picture: np.ndarray, side: int) -> np.ndarray:
    """A square picture at the network's size.

    Raises:
        ShapeError: the picture is not square; stretching it would lie about the focal length.
    """
    height, width = picture.shape[:2]
    if height != width:
        raise ShapeError(
            "The reference picture is not square",
            expected=f"[{side},{side},3]",
            found=list(picture.shape),
            fix="crop or pad it; the stage `infer` does so and keeps the camera in register",
        )
    if height == side:
        return picture
    camera = Camera(np.eye(3, dtype=np.float32), np.eye(4, dtype=np.float32), width, height)
    return resize(picture, camera, side, side)[0]


def _prompts(models: Models, prompts: Any, batch: tuple[int, ...]) -> jax.Array:
    """Prompt embeddings of every picture [N,V,T,C]."""
    prompts = jnp.asarray(prompts, jnp.float32)
    want = models.networks.unet.config
    per_picture = prompts.ndim == 3 + len(batch) and prompts.shape[: len(batch)] == batch
    if prompts.ndim == 3:
        prompts = jnp.broadcast_to(prompts, (*batch, *prompts.shape))
    elif not per_picture:
        raise ShapeError(
            "The prompt embeddings do not fit the pictures",
            expected=f"[V,T,{want.context_dim}] or {[*batch, 'V', 'T', want.context_dim]}",
            found=list(prompts.shape),
            fix="pass [V,T,C]: the same prompts for every picture",
        )
    if prompts.shape[-3] != want.n_views:
        raise ShapeError(
            "The prompt embeddings are of another number of views",
            expected=want.n_views,
            found=prompts.shape[-3],
            fix="one embedding a view, in slot order",
        )
    return prompts.reshape(-1, *prompts.shape[-3:])


def _poses(models: Models, poses: Any, n: int, n_views: int) -> jax.Array | None:
    if not models.networks.unet.config.pose_features:
        if poses is not None:
            raise ConfigError(
                "This network takes no poses", where="poses", fix="train configs/mvdiff.py:posed"
            )
        return None
    if poses is None and models.rig is None:
        raise ConfigError(
            "This network needs the poses of the views it shall show",
            where="poses",
            fix="pass poses=camera_poses(cameras), or keep cameras.json beside the weights",
        )
    poses = camera_poses(models.rig) if poses is None else poses
    poses = jnp.asarray(poses, jnp.float32)
    if poses.shape[-2:] != (n_views, 4):
        raise ShapeError(
            "The poses do not fit the views",
            expected=[n_views, 4],
            found=list(poses.shape),
            fix="camera_poses(cameras) of as many cameras as there are prompts",
        )
    return jnp.broadcast_to(poses.reshape(-1, n_views, 4), (n, n_views, 4))


def _draws(
    networks: Networks,
    rng: Any,
    draws: Mapping[str, Any] | None,
    batch: tuple[int, ...],
    n_views: int,
    steps: int,
) -> Any:
    """A function from a picture's number to its random arrays."""
    n = int(np.prod(batch))
    if draws is None:
        keys = picture_keys(rng, batch)
        return lambda i: draw(networks, keys[i], n_views, steps)
    if rng is not None:
        raise ConfigError(
            "Give either rng or draws",
            where="draws",
            fix="leave rng out: draws hold every random array",
        )
    one = jax.eval_shape(lambda k: draw(networks, k, n_views, steps), jax.random.key(0))
    flat = {}
    for name, like in one.items():
        lead = like.shape[:1] if name == "z" else ()
        want = (*lead, *batch, *like.shape[len(lead) :])
        found = np.shape(draws[name]) if name in draws else "absent"
        if found != want:
            raise ShapeError(
                "A random array does not fit",
                where=f"draws[{name!r}]",
                expected=want,
                found=found,
                fix="draws need clip_noise, x_T and z for this picture size and number of steps",
            )
        flat[name] = jnp.asarray(draws[name], jnp.float32).reshape(
            *lead, n, *like.shape[len(lead) :]
        )
    return lambda i: {k: v[:, i] if k == "z" else v[i] for k, v in flat.items()}


def picture_keys(rng: Any, batch: tuple[int, ...]) -> jax.Array:
    """A key for every picture [N]: split from one key or seed, or given one by one."""
    n = int(np.prod(batch))
    if rng is None or isinstance(rng, int | np.integer):
        rng = jax.random.key(0 if rng is None else int(rng))
    rng = jnp.asarray(rng)
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    if rng.shape == batch and batch:
        return rng.reshape(-1)
    if rng.shape:
        raise ShapeError(
            "rng must be one key, or one for each picture",
            expected=list(batch),
            found=rng.shape,
            fix="jax.random.key(seed)",
        )
    return jax.random.split(rng, n)


SETTINGS = (
    "scheduler/scheduler_config.json",
    "image_noising_scheduler/scheduler_config.json",
    "feature_extractor/preprocessor_config.json",
)
