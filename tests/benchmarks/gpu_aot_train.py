"""Compile training steps for NVIDIA GPUs that are not here: memory and traffic of every variant.

    make gpu-aot                                                     # an environment of its own
    python -m tests.benchmarks.gpu_aot_train --out gpu.jsonl         # the table of docs/scaling.md
    python -m tests.benchmarks.gpu_aot_train --gpu rtx4090 --variant lowmem
    python -m tests.benchmarks.gpu_aot_train --gpu a100 --mesh 1,4,1,1 --batch 4
    python -m tests.benchmarks.gpu_aot_train --stage mvdiff --gpu h100 --batch 4

XLA's compiler for GPUs needs no GPU and no driver; nothing here was executed. What that leaves
out stands in docs/scaling.md. A run that was stopped goes on: rows in --out are not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import logging
import os
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from mouselift_jax.errors import MouseLiftError
from mouselift_jax.models import clip, mvunet, vae
from mouselift_jax.stages.harness import cards, gpu_plan

# Each: stage, variant, samples of a step on one device, mesh as data x fsdp x tensor x sequence.
GSLRM = ("base", "pretrain_256", "pretrain_512", "lowmem", "tiny")
CASES = (
    *(("gslrm", v, 1, "1,1,1,1") for v in GSLRM),
    ("gslrm", "base", 2, "1,1,1,1"),
    ("gslrm", "base", 1, "1,4,1,1"),
    ("gslrm", "base", 1, "1,8,1,1"),
    ("mvdiff", "lowmem", 1, "1,1,1,1"),
    ("mvdiff", "base", 1, "1,1,1,1"),
    ("mvdiff", "base", 4, "1,1,1,1"),
    ("mvdiff", "base", 4, "1,8,1,1"),
)


@contextlib.contextmanager
def released_settings() -> Iterator[Path]:
    """A folder that looks like converted weights of the released shapes, and holds none."""
    configs = {
        "unet": dataclasses.asdict(mvunet.MVUNetConfig()),
        "vae": dataclasses.asdict(vae.VAEConfig()),
        "image_encoder": dataclasses.asdict(clip.VisionConfig()),
        "image_normalizer": {"embedding_dim": 1024},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "conversion.json").write_text("{}")
        for name, config in configs.items():
            (root / name / "params").mkdir(parents=True)
            (root / name / "config.json").write_text(json.dumps(config))
        yield root


def case_config(stage: str, variant: str, released: Path, changes: dict | None = None) -> Any:
    """A variant's config with nothing to read but `released`."""
    config = importlib.import_module(f"configs.{stage}").get_config(variant)
    if stage == "mvdiff" and not config.toy.vae_steps:
        config.init_from = str(released)
    config.update_from_flattened_dict(changes or {})
    return config


def compile_case(
    gpu: str, stage: str, variant: str, samples: int, mesh: str, changes: dict
) -> dict[str, Any]:
    """Memory, traffic and kernels of one micro-step on one device."""
    sizes = [int(n) for n in mesh.split(",")]
    with released_settings() as released:
        config = case_config(stage, variant, released)
        config.train.accum_steps = 1
        config.train.batch_size = samples * sizes[0] * sizes[1]
        config.train.mesh.update(
            dict(zip(("data", "fsdp", "tensor", "sequence"), sizes, strict=True))
        )
        config.update_from_flattened_dict(changes)
        texts: list[str] = []
        started = time.process_time()
        module = importlib.import_module(f"mouselift_jax.stages.{stage}")
        with _kept_text(texts):
            found = gpu_plan.on_card(module, config, Path("."), cards.find_card(gpu))
    calls = Counter(re.findall(r'custom_call_target="([^"]+)"', texts[0]))
    return {
        "gpu": gpu, "stage": stage, "variant": variant, "samples": samples, "mesh": mesh,
        "handed_in_gib": round(found.arguments / 2**30, 2),
        "temporary_gib": round(found.temporary / 2**30, 2),
        "in_all_gib": round((found.arguments + found.temporary) / 2**30, 2),
        "verdict": gpu_plan.verdict(found, cards.find_card(gpu)),
        "collectives": found.collectives, "compile_s": round(found.compile_s, 1),
        "processor_s": round(time.process_time() - started, 1),
        "fusions": texts[0].count(" fusion("), "loops": texts[0].count(" while("),
        "custom_calls": dict(calls.most_common(12)), "executed": False,
    } | changes  # fmt: skip


@contextlib.contextmanager
def _kept_text(texts: list[str]) -> Iterator[None]:
    """Keep the compiled program's text, which `cost` reads."""
    from mouselift_jax.stages.harness import cost

    known = cost.collectives

    def kept(text: str) -> Any:
        texts.append(text)
        return known(text)

    cost.collectives = kept
    try:
        yield
    finally:
        cost.collectives = known


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="append", choices=list(cards.CARDS))
    parser.add_argument("--stage", choices=("gslrm", "mvdiff"), default="gslrm")
    parser.add_argument("--variant")
    parser.add_argument("--mesh", default="1,1,1,1")
    parser.add_argument("--batch", type=int, default=1, help="samples of a step on one device")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--out")
    a = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("mouselift_jax").setLevel(logging.INFO)
    changes = {k: json.loads(v) for k, v in (s.split("=", 1) for s in a.set)}
    cases = ((a.stage, a.variant, a.batch, a.mesh),) if a.variant else CASES
    out = Path(a.out) if a.out else None
    rows = (
        [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []
    )
    done = {(r["gpu"], r["stage"], r["variant"], r["samples"], r["mesh"]) for r in rows}
    failed = 0
    for gpu in a.gpu or ["h100", "rtx4090"]:
        for case in cases:
            if (gpu, *case) in done:
                continue
            try:
                row = compile_case(gpu, *case, changes)
            except (MouseLiftError, RuntimeError, ValueError):  # the others are still compiled
                failed += 1
                print(gpu, case, "failed", flush=True)  # noqa: T201 - a program
                traceback.print_exc()
                continue
            print(json.dumps(row), flush=True)  # noqa: T201 - a program
            if out:
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
