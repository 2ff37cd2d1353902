"""Conversion at full size: memory, time, and forward parity with torch.

    python -m tests.benchmarks.full_size_conversion --manifests DIR [--parity] [--repeats 3]

Makes GS-LRM and the pipeline with random weights in a temporary directory (names and shapes from
the *_keys.tsv manifests), converts each, and compares with reading and rewriting the same bytes
with safetensors, alternately. `--parity` adds `--verify`: hashes and one forward pass of every
network against torch. Needs about 25 GB of disk and 8 GB of memory (16 with --parity).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests import torch_sources as fake
from tests.benchmarks import report
from tests.models.oracle import manifest

SETTINGS = {
    "unet": {
        "_class_name": "UNetMV2DConditionModel",
        "sample_size": 64,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlockMV2D"] * 3 + ["DownBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2048,
        "num_views": 6,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
    "image_encoder": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
    "image_normalizer": {"embedding_dim": 1024},
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
    },
}
MANIFESTS = {
    "unet": "mvunet_keys.tsv",
    "vae": "vae_keys.tsv",
    "image_encoder": "clip_vision_keys.tsv",
    "text_encoder": "clip_text_keys.tsv",
}


def _anonymous_mb(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        rows = dict(line.split(":", 1) for line in file if ":" in line)
    return int(rows["RssAnon"].split()[0]) / 1e3 if "RssAnon" in rows else 0.0


def measured(command: list[str]) -> dict[str, float]:
    """Run a command; wall and processor seconds, and the peak of its anonymous memory."""
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        try:
            peak = max(peak, _anonymous_mb(process.pid))
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"failed: {' '.join(command)}")
    os.sync()
    wall, after = time.perf_counter() - start, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    return {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "peak_anon_mb": round(peak)}


REWRITE = """
import sys
from pathlib import Path
from safetensors.numpy import load_file, save_file
for i, name in enumerate(sys.argv[2:]):
    save_file(load_file(name), Path(sys.argv[1]) / f"{i}.safetensors")
"""


def make_pipeline(root: Path, manifests: Path) -> Path:
    """A pipeline folder in its real layout."""
    for component, settings in SETTINGS.items():
        name = MANIFESTS.get(component)
        shapes = manifest(manifests / name) if name else {"mean": (1, 1024), "std": (1, 1024)}
        state = fake.random_state(shapes)
        fake.write_component(root / "pipe" / component, component, settings, state)
    fake.write_settings(root / "pipe")
    return root / "pipe"


def make_gslrm(root: Path, manifests: Path) -> Path:
    """A folder with a GS-LRM checkpoint, VGG-19 included; beside it the same as safetensors."""
    from safetensors.numpy import save_file

    rows = [r.split("\t") for r in (manifests / "gslrm_keys.tsv").read_text().splitlines()[1:]]
    state = fake.random_state({r[0]: tuple(json.loads(r[1])) for r in rows})
    save_file(state, root / "gslrm.safetensors")
    fake.save_torch(root / "gslrm" / "ckpt_0000000000021125.pt", {"model": state})
    return root / "gslrm"


MAKERS = {"gslrm": make_gslrm, "mvdiffusion": make_pipeline}


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifests", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--kind", choices=MAKERS, help="only this one")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder goes away too
    root = Path(tempfile.mkdtemp(prefix="full_size_"))
    found = {}
    try:
        for kind in [args.kind] if args.kind else MAKERS:
            source = MAKERS[kind](root, args.manifests)
            found[kind] = measure(kind, source, root, args)
            print(json.dumps({kind: found[kind]}), flush=True)
            shutil.rmtree(source)
        report.write("conversion", tables(found), args.out, device="cpu")
    finally:
        shutil.rmtree(root)


def tables(found: dict[str, dict]) -> report.Tables:
    """What the page shows of the measurements."""
    runs = [
        {"kind": kind, "what": what, "run": i + 1, **row}
        for kind, result in found.items()
        for what in ("convert", "rewrite")
        for i, row in enumerate(result[what])
    ]
    whole = [
        {"kind": kind} | {k: v for k, v in result.items() if not isinstance(v, (list, dict))}
        for kind, result in found.items()
    ]
    parity = [
        {"kind": kind, "component": name, **{k: v for k, v in row.items() if k != "missing"}}
        for kind, result in found.items()
        for name, row in result.get("parity", {}).items()
    ]
    shown = {"whole (ratios of medians)": whole, "every run": runs}
    return shown | ({"against torch": parity} if parity else {})


def measure(kind: str, source: Path, root: Path, args: argparse.Namespace) -> dict:
    """Convert and rewrite alternately."""
    files = (
        [root / "gslrm.safetensors"] if kind == "gslrm" else sorted(source.glob("*/*.safetensors"))
    )
    ours, theirs = [], []
    tool = [sys.executable, "tools/convert_torch_ckpt.py", kind, str(source), str(root / "out")]
    for i in range(args.repeats):
        ours.append(measured(tool))
        record = json.loads((root / "out" / "conversion.json").read_text())
        if i < args.repeats - 1 or not args.parity:
            shutil.rmtree(root / "out")
        (root / "copy").mkdir()
        theirs.append(
            measured([sys.executable, "-c", REWRITE, str(root / "copy"), *map(str, files)])
        )
        shutil.rmtree(root / "copy")
    largest = max(entry["bytes"] for entry in record["components"].values()) / 1e6
    out = {
        "bytes_mb": round(sum(f.stat().st_size for f in files) / 1e6),
        "largest_component_mb": round(largest),
        "convert": ours,
        "rewrite": theirs,
        "wall_ratio": round(_median(ours, "wall_s") / _median(theirs, "wall_s"), 2),
        "cpu_ratio": round(_median(ours, "cpu_s") / _median(theirs, "cpu_s"), 2),
        "peak_anon_mb": max(row["peak_anon_mb"] for row in ours),
        "allowed_anon_mb": round(1.3 * largest + 1000),
    }
    if args.parity:
        out["parity"] = parity(kind, source, root / "out")
        shutil.rmtree(root / "out")
    return out


def parity(kind: str, source: Path, folder: Path) -> dict:
    """Hashes and one forward pass of every component against torch, each in its own turn."""
    from mouselift_jax.weights.convert import verify_conversion
    from mouselift_jax.weights.kinds import Request, plan_conversion
    from tools.torch_oracles import forward_check
    from tools.torch_reader import read_torch

    plan = plan_conversion(kind, Request(source, read_torch))
    return verify_conversion(plan, folder, forward_check)


def _median(rows: list[dict], key: str) -> float:
    return float(np.median([row[key] for row in rows]))


if __name__ == "__main__":
    main()
