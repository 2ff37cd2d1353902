"""Stage `prompts`: word the six views and encode the words with the pipeline's text tower."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.inputs import must_exist, resolve_samples
from mouselift_jax.data.prompts import STYLES_FILE, pick_style, view_prompts, view_turns
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import CheckpointError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.pipelines.prompts import cosines, encode_prompts, load_tokenizer, tokenize
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.stages.harness.plan import Plan

log = logging.getLogger("mouselift_jax")
NEXT = (
    "python launch.py --config=configs/mvdiff.py --config.samples=SAMPLES "
    "--config.init_from={config.init_from} --config.prompt_embeds={workdir} "
    "--workdir={beside}/mvdiff",
)


def next_after(config: Any, summary: dict[str, Any]) -> tuple[str, ...]:
    """The samples are named where they are known."""
    del summary
    samples = "{config.samples}" if config.samples else "SAMPLES"
    return tuple(line.replace("SAMPLES", samples) for line in NEXT)


# Above this, two views are worded so alike that the network can hardly tell them apart; the
# released prompts reach 0.995 between front_right and front_left.
ALIKE = 0.998


def plan(config: Any, workdir: Path) -> Plan:
    """What would be encoded."""
    must_exist(config.init_from, "init_from")
    prompts = _prompts(config, _cameras(config))
    return Plan(
        "prompts",
        reads=[f"{config.init_from} (text_encoder, tokenizer)"],
        writes=[f"{workdir}/prompt_embeds"],
        steps=f"{len(prompts)} prompts",
        memory="the text tower: 1.4 GB in float32 at full size",
        notes=prompts,
    )


def run(config: Any, workdir: Workdir) -> None:
    """Encode and write the embeddings with their texts."""
    from mouselift_jax.report.html import Finding, Section, Table, write_report
    from mouselift_jax.weights.pretrained import load_pretrained, save_component

    source = must_exist(config.init_from, "init_from")
    cameras = _cameras(config)
    prompts = _prompts(config, cameras)
    module, params = load_pretrained(source, "text_encoder")
    tokenizer = load_tokenizer(source / "tokenizer", module.config.vocab_size)
    tokens = tokenize(tokenizer, prompts, module.config.max_tokens)
    embeds = encode_prompts(module, params, tokens)
    if not np.isfinite(embeds).all():
        raise CheckpointError(
            "the text encoder gives values that are not finite",
            where=source / "text_encoder",
            fix="convert the checkpoint again with --verify",
        )
    settings = {
        "style": config.style,
        "prompts": prompts,
        "turns_deg": view_turns(cameras).tolist(),
        "shape": list(embeds.shape),
    }
    save_component(workdir.path, "prompt_embeds", settings, {"prompt_embeds": embeds})

    alike = cosines(embeds)
    off = alike - np.eye(len(alike))
    i, j = np.unravel_index(off.argmax(), off.shape)
    findings = []
    if off.max() > ALIKE:
        workdir.warn(f"prompts {i} and {j} are nearly the same (cosine {off.max():.4f})")
        findings.append(
            Finding(
                f"prompts {i} and {j} are nearly the same (cosine {off.max():.4f})",
                "the wording hardly changes the embedding",
                "try --config.style=facelift, whose words the network was trained with",
            )
        )
    metrics = {"prompts/max_cosine": float(off.max()), "prompts/std": float(embeds.std())}
    workdir.summary(
        finished=True,
        steps=len(prompts),
        metrics=metrics,
        artefacts={"report": "report.html", "prompt_embeds": "prompt_embeds"},
        inputs={"init_from": str(source), "style": config.style},
    )
    numbers = [str(k) for k in range(len(prompts))]
    write_report(
        workdir.path,
        title="Prompt embeddings",
        intro="The words by which the diffusion network knows each view, and how alike they are.",
        sections=[
            Section(
                "Prompts", [Table(["slot", "prompt"], list(zip(numbers, prompts, strict=True)))]
            ),
            Section(
                "Cosine between views",
                [
                    Table(
                        ["", *numbers],
                        [[n, *row] for n, row in zip(numbers, alike.tolist(), strict=True)],
                    ),
                    *findings,
                ],
            ),
        ],
    )
    log.info("prompt embeddings %s: --config.prompt_embeds=%s", embeds.shape, workdir.path)


def _cameras(config: Any) -> Camera | None:
    if not config.samples:
        return None
    samples = SampleSet.open(resolve_samples(config.samples))
    cameras = samples.cameras(samples.ids()[0])
    slots = (samples.manifest.get("rig") or {}).get("slots")  # further views stand behind them
    return cameras if cameras is None or not slots else cameras[np.arange(slots)]


def _prompts(config: Any, cameras: Camera | None) -> list[str]:
    return view_prompts(pick_style(config.style, config.styles or STYLES_FILE), cameras)
