"""The frozen networks of a multi-view run: converted ones, or toys of its own (`toys.py`)."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.data.inputs import must_exist
from mouselift_jax.data.prompts import SLOT_TURNS
from mouselift_jax.errors import CheckpointError, ConfigError
from mouselift_jax.models import mvunet
from mouselift_jax.pipelines import views
from mouselift_jax.pipelines.views import SETTINGS
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import read_json
from mouselift_jax.stages.multiview.settings import MultiviewSettings
from mouselift_jax.stages.multiview.toys import TOY_PROMPT_TOKENS, make_toys, toy_configs
from mouselift_jax.training import distributed
from mouselift_jax.training.settings import LoraSettings
from mouselift_jax.weights.networks import network, param_shapes
from mouselift_jax.weights.pretrained import (
    find_component,
    load_pretrained,
    read_config,
    save_component,
)

log = logging.getLogger("mouselift_jax")

FROZEN = ("vae", "image_encoder", "image_normalizer")


@dataclasses.dataclass
class Towers:
    """What a multi-view run does not train.

    Attributes:
        modules: vae, image_encoder, image_normalizer.
        params: their weights.
        settings: schedules and preprocessing, `views.Networks`' keyword arguments.
        prompts: [V,T,C].
        toy: whether they are toys.
        turns: the turn from slot 0 that each prompt names, degrees; None for toys' random ones.
    """

    modules: dict[str, nn.Module]
    params: dict[str, Any]
    settings: dict[str, Any]
    prompts: np.ndarray
    toy: bool = False
    turns: tuple[float, ...] | None = None

    def networks(self, unet: mvunet.MVUNet) -> views.Networks:
        """Modules with a UNet among them."""
        return views.Networks(unet, **self.modules, **self.settings)


def uses_toys(config: MultiviewSettings) -> bool:
    """Whether this run makes its frozen networks itself.

    Raises:
        ConfigError: neither weights nor toys were asked for.
    """
    if config.init_from:
        return False
    if config.toy.vae_steps:
        return True
    raise ConfigError(
        "there are no weights to start from",
        where="config.init_from",
        fix="--config.init_from=DIR (a converted pipeline, see docs/checkpoints.md), or the "
        "variant tiny, which makes toy networks itself",
    )


def are_toys(source: Path) -> bool:
    """Whether the frozen networks that these weights go with are toys, which a run made itself."""
    folder, _ = find_component(source, "image_encoder")
    record = read_json(Path(folder.parent) / "config.json") or {}  # of a run; others are converted
    return bool((record.get("toy") or {}).get("vae_steps"))


def downscale_of(config: MultiviewSettings) -> int:
    """Pixels for one latent along a side, of this run's autoencoder."""
    settings = toy_configs(config)["vae"] if uses_toys(config) else None
    settings = settings or read_config(must_exist(config.init_from, "init_from"), "vae")
    return network("vae").make(settings, jnp.float32).config.downscale


def load_towers(config: MultiviewSettings, workdir: Workdir, samples: Path) -> Towers:
    """Read the frozen networks, after making them if they are toys."""
    if uses_toys(config):
        make_toys(config, workdir, samples)
        source = workdir.path
    else:
        source = must_exist(config.init_from, "init_from")
        copy_settings(source, workdir)
        distributed.barrier("settings of the pipeline")  # the first process copies them
    dtype = jnp.dtype(config.frozen_dtype)
    modules, params = {}, {}
    for name in FROZEN:
        modules[name], params[name] = views.load_network(source, name, dtype)
    settings = views.read_settings(workdir.path)
    prompts, turns = read_prompts(config, workdir)
    return Towers(modules, params, settings, prompts, are_toys(source), turns)


def abstract_towers(config: MultiviewSettings) -> Towers:
    """The frozen networks as shapes, for plans: nothing is read but configs."""
    toys = toy_configs(config) if uses_toys(config) else {}
    dtype = jnp.dtype(config.frozen_dtype)
    modules, params = {}, {}
    for name in FROZEN:
        settings = toys.get(name) or read_config(config.init_from, name)
        kind = views.network_dtype(name, dtype)
        modules[name] = network(name).make(settings, kind)
        params[name] = jax.tree.map(
            lambda x, kind=kind: jax.ShapeDtypeStruct(x.shape, kind), param_shapes(name, settings)
        )
    c = config.model
    tokens = TOY_PROMPT_TOKENS if toys else 77
    prompts = jax.ShapeDtypeStruct((c.n_views, tokens, c.context_dim), jnp.float32)
    return Towers(modules, params, {}, prompts, bool(toys))


def settings_folder(source: Path) -> Path:
    """The folder with the schedules: that of weights, or of what a run started from."""
    for _ in range(20):
        if (source / SETTINGS[0]).exists():
            return source
        record = source / "config.json"
        start = json.loads(record.read_text()).get("init_from") if record.exists() else None
        if not start:
            break
        source = Path(start)
    raise CheckpointError(
        "The settings of the pipeline are missing",
        where=source / SETTINGS[0],
        fix="convert the whole pipeline: tools/convert_torch_ckpt.py mvdiffusion SRC DST",
    )


def copy_settings(source: Path, workdir: Workdir) -> None:
    """Keep the schedules beside the run's weights."""
    found = settings_folder(source)
    for name in SETTINGS:
        if workdir.options.primary and found / name != workdir / name:
            (workdir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found / name, workdir / name)


def read_prompts(
    config: MultiviewSettings, workdir: Workdir
) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """The prompt embeddings [V,T,C] of the config, kept beside the run's weights, and their turns.

    A file that does not tell the turns its prompts name is taken for the released one's.
    """
    source = config.prompt_embeds or config.init_from or workdir.path
    path = must_exist(source, "prompt_embeds")
    if path.is_file():
        raise ConfigError(
            "prompt embeddings are read from a folder",
            where=f"config.prompt_embeds={path}",
            fix=f"python tools/convert_torch_ckpt.py prompt_embeds {path} DST, then "
            "--config.prompt_embeds=DST",
        )
    record = read_config(path, "prompt_embeds")
    _, array = load_pretrained(path, "prompt_embeds")
    array = np.asarray(array, np.float32)
    if workdir.options.primary and Path(source) != workdir.path:
        record = {"source": str(source), **record}
        save_component(workdir.path, "prompt_embeds", record, {"prompt_embeds": array})
    turns = record.get("turns_deg", SLOT_TURNS if len(array) == len(SLOT_TURNS) else None)
    return array, None if turns is None else tuple(turns)


# --- the UNet to start from ----------------------------------------------------------------------


def initial_unet(
    source: str,
    config: mvunet.MVUNetConfig,
    fresh: Callable[[], Any],
    checkpoint: str | int = "best",
) -> tuple[dict[str, Any], str]:
    """The weights of a UNet to start from, fitted to this run's network.

    A network with 4 input channels (stock Stable Diffusion) gets 4 more, of zeros, for the
    reference picture's latents; one that has 8 is never touched. A pose input it lacks is added,
    without effect at the start.

    Args:
        source: `config.init_from`.
        config: of this run's network.
        fresh: makes random weights of this run's network; called only where something is added.
        checkpoint: where the source is a run: best | newest | STEP.
    """
    from mouselift_jax.weights.pretrained import load_initial

    stored = read_config(source, "unet")
    expected = dataclasses.asdict(config)
    extends = _extends(stored, config.in_channels)
    adds_pose = config.pose_features and not stored.get("pose_features", 0)
    if extends:
        expected["in_channels"] = 4
    if adds_pose:
        expected["pose_features"] = 0
    params, note = load_initial(source, "unet", expected, checkpoint)
    if extends:
        kernel = params["conv_in"]["kernel"]
        params["conv_in"]["kernel"] = np.concatenate([kernel, np.zeros_like(kernel)], axis=2)
        note += "; conv_in extended from 4 to 8 channels with zeros"
    if adds_pose:
        params["pose_encoder"] = jax.device_get(fresh()["pose_encoder"])
        note += "; a pose input was added, without effect at the start"
    return params, note


def _extends(stored: Mapping[str, Any], in_channels: int) -> bool:
    return stored.get("in_channels") == 4 and in_channels == 8


def low_rank(config: MultiviewSettings) -> LoraSettings:
    """The section `lora` of a run.

    What the run adds to the network starts without effect; it is trained whole, for low-rank
    additions to the other weights would leave it so.
    """
    low = LoraSettings.of(config.lora)
    if not low.rank:
        return low
    added = ["^pose_encoder/"] if config.model.pose_features else []
    if config.init_from and _extends(
        read_config(config.init_from, "unet"), config.model.in_channels
    ):
        added.append("^conv_in/")
    return dataclasses.replace(low, whole=(*low.whole, *added))
