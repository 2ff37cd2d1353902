"""What a torch checkpoint of each kind holds, opened and paired with our networks.

`plan_conversion` reads names, shapes and settings only; no weight is touched. Everything that could
be wrong with a source, short of its values, is found here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import CheckpointError, ConfigError, nearest, one_of
from mouselift_jax.models.clip_pixels import ClipPixels
from mouselift_jax.weights.networks import network, param_shapes
from mouselift_jax.weights.rules import Correspondence, match
from mouselift_jax.weights.state_dict import state_dict
from mouselift_jax.weights.tables import clip, embeddings, gslrm, mvunet, vae, vgg
from mouselift_jax.weights.tables.pipeline import (
    OPTIONAL,
    SETTINGS,
    check_schedulers,
    eight_channels,
    tokenizer_faults,
)
from mouselift_jax.weights.torch_sources import (
    LazyTensor,
    TorchReader,
    Weights,
    check_file,
    open_component,
    open_file,
    read_json,
)

ADOBE = (
    "FaceLift weights: Adobe Research License, non-commercial research use only; the converted "
    "weights stay under the licence of their source"
)
LICENCES = {
    "gslrm": ADOBE,
    "mvdiffusion": ADOBE + "; the Stable Diffusion 2.1 base is under CreativeML Open RAIL++-M",
    "unet": "the licence of the weights that this training started from",
    "vgg19": "VGG-19 of the Visual Geometry Group: CC BY 4.0",
    "lpips": "lpips: BSD-2-Clause; torchvision's VGG-16: BSD-3-Clause",
    "prompt_embeds": "embeddings computed with Stable Diffusion 2.1's text encoder: "
    "CreativeML Open RAIL++-M",
}
PIPELINE_CONFIGS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "unet": mvunet.config_from_source,
    "vae": vae.config_from_source,
    "image_encoder": clip.image_encoder_config,
    "image_normalizer": clip.image_normalizer_config,
    "text_encoder": clip.text_encoder_config,
}
GSLRM_ANCHOR = "patch_embedder.1.weight"
# A tensor that only this component has.
SIGNATURES = {
    "gslrm": re.escape(GSLRM_ANCHOR),
    "unet": r"time_embedding\.linear_1\.weight",
    "vae": r"post_quant_conv\.weight",
    "image_encoder": r"vision_model\.embeddings\.class_embedding",
    "text_encoder": r"(text_model\.)?embeddings\.token_embedding\.weight",
    "vgg19": r"conv16\.weight",
    "lpips": r"lin0\.model\.1\.weight",
    "a single-file Stable Diffusion checkpoint": r"model\.diffusion_model\..*",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One component, ready to be written."""

    component: str
    config: dict[str, Any]
    pairing: Correspondence
    tensors: Mapping[str, Any]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ConversionPlan:
    """Everything a conversion will write."""

    kind: str
    source: Path
    parts: tuple[Part, ...]
    copies: Mapping[str, Path]  # path in the result -> file that is copied there
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """The mapping of every tensor, for `--dry-run`."""
        lines = [f"{self.kind}: {self.source}"]
        for part in self.parts:
            size = sum(int(np.prod(m.source_shape)) for m in part.pairing.moves)
            lines += [
                f"== {part.component}: {len(part.pairing.moves)} tensors, {size:,} values, from "
                + ", ".join(p.name for p in part.files),
                f"config: {json.dumps(part.config)}",
                part.pairing.describe(),
            ]
            lines += [f"note: {note}" for note in part.notes]
        lines += [f"copied: {file} -> {place}" for place, file in self.copies.items()]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        source: the file or folder to convert.
        read_torch: opens .pt, .pth and .bin files; None = torch is not there.
        config: upstream's yaml or json, for GS-LRM.
        weights: "ema" or "raw", for a training checkpoint that holds both; None = ema if there.
        components: only these of the source's components; None = all.
    """

    source: Path
    read_torch: TorchReader | None = None
    config: Path | None = None
    weights: str | None = None
    components: tuple[str, ...] | None = None

    def wants(self, component: str) -> bool:
        """Whether this component was asked for."""
        return self.components is None or component in self.components


def guess_component(names: Sequence[str]) -> str | None:
    """The component that a state dict's names give away."""
    for component, pattern in SIGNATURES.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return component
    return None


def _refuse_other(component: str, weights: Weights) -> None:
    found = guess_component(list(weights.tensors))
    if found not in (None, component) and component in SIGNATURES:
        raise CheckpointError(
            "The file holds another network",
            where=weights.files[0],
            expected=component,
            found=found,
            fix="give the KIND that belongs to the file; see docs/checkpoints.md",
        )


def _part(
    component: str, config: dict[str, Any], weights: Weights, notes: Sequence[str] = ()
) -> Part:
    _refuse_other(component, weights)
    shapes = param_shapes(component, config)
    pairing = match(network(component).rules, weights.tensors, shapes)
    odd = {
        move.key: str(weights.tensors[move.key].dtype)
        for move in pairing.moves
        if "float" not in str(weights.tensors[move.key].dtype)
    }
    if odd:
        raise CheckpointError(
            "Tensors are not floating-point",
            where=weights.files[0],
            found=str(odd)[:300],
            fix="give the unquantised weights",
        )
    return Part(component, config, pairing, weights.tensors, weights.files, tuple(notes))


# --- GS-LRM ---------------------------------------------------------------------------------------


def _gslrm_file(source: Path) -> Path:
    if not source.is_dir():
        return source
    found = sorted(source.glob("ckpt_*.pt"))
    if not found:
        raise CheckpointError(
            "There is no GS-LRM checkpoint in this folder",
            where=source,
            expected="ckpt_*.pt",
            found=", ".join(sorted(p.name for p in source.iterdir())[:12]) or "an empty folder",
            fix="give the file itself, or the folder it lies in",
        )
    return found[-1]


def _upstream_config(request: Request, file: Path) -> tuple[dict[str, Any] | None, str]:
    """Upstream's yaml or json, given or lying beside the checkpoint, and a note on it."""
    import yaml

    path = request.config
    if path is None:
        names = ("gslrm.yaml", "config.yaml", "config.yml", "gslrm.json", "config.json")
        path = next((file.parent / n for n in names if (file.parent / n).is_file()), None)
    if path is None:
        return None, "no training config was given: head size 64, options of the released network"
    check_file(path)
    try:
        value = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            "The config is not yaml or json",
            where=path,
            found=str(error),
            fix="give the training config of the checkpoint, yaml or json",
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(
            "The config does not hold a dictionary",
            where=path,
            fix="give the checkpoint's training config, yaml or json",
        )
    return value, f"options from {path.name}"


def _plan_gslrm(request: Request) -> ConversionPlan:
    file = _gslrm_file(request.source)
    content = open_file(file, request.read_torch)
    state, origin = state_dict(content, file, request.weights, anchor=GSLRM_ANCHOR)
    _refuse_other("gslrm", Weights(state, (file,)))
    upstream, note = _upstream_config(request, file)
    config = gslrm.config_from_source({k: v.shape for k, v in state.items()}, upstream)
    parts = [_part("gslrm", config, Weights(state, (file,)), [note, *origin])]
    for component, prefix in (
        ("vgg19", "loss_calculator.perceptual_loss_module.net."),
        ("lpips", "loss_calculator.lpips_loss_module."),
    ):
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if component == "lpips":
            inner = vgg.unpack_lpips({re.sub(r"^lpips\.", "", k): v for k, v in inner.items()})
        if inner:
            parts.append(_part(component, {}, Weights(inner, (file,)), ["from the loss"]))
    notes = () if file == request.source else (f"took {file.name}, the newest of the folder",)
    return ConversionPlan("gslrm", request.source, tuple(parts), {}, notes)


# --- multi-view diffusion -------------------------------------------------------------------------


def _component_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "A component of the pipeline is missing",
            where=folder,
            expected="config.json and weights",
            found="no such folder" if not folder.is_dir() else "no config.json",
            fix="download the whole pipeline folder; see docs/checkpoints.md",
        )
    return folder


def _diffusers_part(component: str, folder: Path, request: Request) -> Part:
    folder = _component_folder(folder)
    settings = read_json(folder / "config.json")
    config = PIPELINE_CONFIGS[component](settings)
    weights = open_component(folder, request.read_torch)
    state, notes = state_dict(weights.tensors, weights.files[0], request.weights)
    weights = dataclasses.replace(weights, tensors=state)
    if ".fp16." in weights.files[0].name:
        notes.append("only half-precision weights were there")
    if component == "unet":
        config, weights, notes = eight_channels(config, weights, notes)
    return _part(component, config, weights, notes)


def _plan_mvdiffusion(request: Request) -> ConversionPlan:
    folder = request.source
    if not (folder / "model_index.json").is_file():
        nested = min(folder.glob("**/model_index.json"), default=None)
        raise CheckpointError(
            "This is not a diffusers pipeline folder",
            where=folder,
            expected="model_index.json, unet/, vae/, image_encoder/, image_normalizer/, ...",
            found=_contents(folder),
            fix=f"give {nested.parent}"
            if nested
            else "see docs/checkpoints.md; a checkpoint-N folder of a training run is KIND unet",
        )
    read_json(folder / "model_index.json")
    check_schedulers(folder)
    place = "feature_extractor"
    ClipPixels.from_source(read_json(folder / place / SETTINGS[place]))  # refuses what differs
    parts, notes = [], []
    for component in filter(request.wants, PIPELINE_CONFIGS):
        if component in OPTIONAL and not (folder / component).is_dir():
            notes.append(f"no {component}: new prompt embeddings cannot be made from this pipeline")
            continue
        parts.append(_diffusers_part(component, folder / component, request))
    copies = {f"{place}/{name}": folder / place / name for place, name in SETTINGS.items()}
    if (folder / "tokenizer").is_dir():
        copies |= {f"tokenizer/{p.name}": p for p in sorted((folder / "tokenizer").iterdir())}
        vocabulary = None
        if (folder / "text_encoder" / "config.json").is_file():
            vocabulary = read_json(folder / "text_encoder" / "config.json").get("vocab_size")
        notes += [
            f"tokenizer/{fault}: copy that of Stable Diffusion 2.1 there before making prompts"
            for fault in tokenizer_faults(folder / "tokenizer", vocabulary)
        ]
    elif (folder / "text_encoder").is_dir():
        notes.append("no tokenizer: copy that of Stable Diffusion 2.1 before making prompts")
    for file in copies.values():
        check_file(file)
    return ConversionPlan("mvdiffusion", folder, tuple(parts), copies, tuple(notes))


def _contents(path: Path) -> str:
    if not path.exists():
        return "no such folder"
    if path.is_file():
        return "a file"
    return ", ".join(sorted(p.name for p in path.iterdir())[:12]) or "an empty folder"


def _unet_folder(request: Request) -> tuple[Path, str]:
    """The folder that holds the UNet's weights, and how it was chosen."""
    root = request.source
    steps = [p for p in root.glob("checkpoint-*") if p.name.split("-")[-1].isdigit()]
    note = ""
    if steps and not (root / "unet").is_dir():
        root = max(steps, key=lambda p: int(p.name.split("-")[-1]))
        note = f"{root.name}, the newest, "
    folders = {"ema": root / "unet_ema", "raw": root / "unet"}
    there = [name for name, folder in folders.items() if (folder / "config.json").is_file()]
    if not there and (root / "config.json").is_file():
        return root, f"took {root.name}"
    if not there or (request.weights or there[0]) not in there:
        raise CheckpointError(
            "There is no UNet here",
            where=root,
            expected={None: "unet_ema/ or unet/", "ema": "unet_ema/", "raw": "unet/"}[
                request.weights
            ]
            + " with config.json and weights",
            found=_contents(root),
            fix="give the folder checkpoint-N of a training run; the original writes unet/ and "
            "unet_ema/ below checkpoints/checkpoints/... by mistake: look there",
        )
    choice = request.weights or there[0]
    what = {"ema": "the moving average (unet_ema)", "raw": "the raw weights (unet)"}[choice]
    other = " of both" if len(there) == 2 else ", the only ones there"
    return folders[choice], f"took {note}{what}{other}"


def _plan_unet(request: Request) -> ConversionPlan:
    if not request.source.is_dir():
        raise CheckpointError(
            "A UNet is a folder with config.json and weights",
            where=request.source,
            found=_contents(request.source),
            fix="give checkpoint-N, or checkpoint-N/unet",
        )
    folder, note = _unet_folder(request)
    part = _diffusers_part("unet", folder, request)
    part = dataclasses.replace(part, notes=(note, *part.notes))
    return ConversionPlan("unet", request.source, (part,), {}, (note,))


# --- the small ones -------------------------------------------------------------------------------


def _plan_vgg19(request: Request) -> ConversionPlan:
    weights = Weights(vgg.read_matconvnet(request.source), (request.source,))
    return ConversionPlan("vgg19", request.source, (_part("vgg19", {}, weights),), {})


def _plan_lpips(request: Request) -> ConversionPlan:
    files = [request.source]
    if request.source.is_dir():
        files = sorted(p for p in request.source.iterdir() if p.suffix in (".pth", ".pt"))
    if not files:
        raise CheckpointError(
            "There are no LPIPS weights here",
            where=request.source,
            expected="vgg.pth of the package lpips and vgg16-397923af.pth of torchvision",
            found=_contents(request.source),
            fix="see docs/checkpoints.md for where the two files come from",
        )
    tensors: dict[str, Any] = {}
    for file in files:
        tensors |= vgg.unpack_lpips(state_dict(open_file(file, request.read_torch), file)[0])
    part = _part("lpips", {}, Weights(tensors, tuple(files)))
    return ConversionPlan("lpips", request.source, (part,), {})


def _plan_prompts(request: Request) -> ConversionPlan:
    content = open_file(request.source, request.read_torch)
    if not isinstance(content, LazyTensor):
        raise CheckpointError(
            "The file does not hold one tensor",
            where=request.source,
            expected="a tensor [6, 77, 1024]",
            found=type(content).__name__,
            fix="give clr_embeds.pt",
        )
    tensors = {"prompt_embeds": content}
    config = embeddings.config_from_tensors(tensors, request.source)
    part = _part("prompt_embeds", config, Weights(tensors, (request.source,)))
    return ConversionPlan("prompt_embeds", request.source, (part,), {})


KINDS: dict[str, Callable[[Request], ConversionPlan]] = {
    "gslrm": _plan_gslrm,
    "mvdiffusion": _plan_mvdiffusion,
    "unet": _plan_unet,
    "vgg19": _plan_vgg19,
    "lpips": _plan_lpips,
    "prompt_embeds": _plan_prompts,
}


def plan_conversion(kind: str, request: Request) -> ConversionPlan:
    """Open a source and pair it with our networks; nothing is written, no weight is read.

    Args:
        kind: a key of `KINDS`.
        request: what to convert.

    Raises:
        CheckpointError: the source is damaged, incomplete, or of another kind.
        ConfigError: its settings ask for something that is not implemented.
    """
    one_of(kind, KINDS, "There is no such KIND", error=CheckpointError)
    if not request.source.exists():
        raise CheckpointError(
            "There is no such file or folder", where=request.source, fix="check the path"
        )
    plan = KINDS[kind](request)
    there = {part.component for part in plan.parts}
    known = PIPELINE_CONFIGS if kind == "mvdiffusion" else there
    for name in request.components or ():
        if name not in there:
            raise CheckpointError(
                "The source has no such component", where=name, fix=nearest(name, known)
            )
    parts = tuple(part for part in plan.parts if request.wants(part.component))
    return dataclasses.replace(plan, parts=parts)
