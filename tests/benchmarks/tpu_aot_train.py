"""Compile the full-size training steps for TPU slices that are not here: memory and traffic.

    pip install libtpu==0.0.42.1
    python -m tests.benchmarks.tpu_aot_train --out tpu.jsonl         # the table of docs/scaling.md
    python -m tests.benchmarks.tpu_aot_train --weak                  # 8, 64 and 256 devices
    python -m tests.benchmarks.tpu_aot_train --topology v5e:4x4 --mesh 1,16,1,1 --batch 32
    python -m tests.benchmarks.tpu_aot_train --stage mvdiff --topology v5p:2x2x1 --batch 4

libtpu carries the whole TPU compiler; only execution needs the device. Nothing here was executed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

from mouselift_jax import target
from mouselift_jax.errors import MouseLiftError
from tests.benchmarks.gpu_aot_train import case_config, released_settings

os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is used, so none is locked

# Each: stage, topology, mesh as data x fsdp x tensor x sequence, batch, variant of the config.
CASES = (
    ("gslrm", "v5e:2x2", "1,4,1,1", 4, "base"),
    ("gslrm", "v5p:2x2x1", "1,4,1,1", 8, "base"),
    ("gslrm", "v5e:2x2", "1,4,1,1", 16, "lowmem"),
    ("mvdiff", "v5p:2x2x1", "1,4,1,1", 4, "base"),
)
WEAK = (
    ("gslrm", "v5e:2x4", "1,8,1,1", 8, "base"),
    ("gslrm", "v5e:8x8", "8,8,1,1", 64, "base"),
    ("gslrm", "v5e:16x16", "32,8,1,1", 256, "base"),
)


def compile_case(
    stage: str, topology: str, mesh: str, batch: int, variant: str, changes: dict
) -> dict:
    """Memory and traffic of one step on one device of a slice."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    module = importlib.import_module(f"mouselift_jax.stages.{stage}")
    started = time.time()
    # The device is not here, and is a TPU: what would be chosen there.
    with released_settings() as released, target.absent("tpu"):
        config = case_config(stage, variant, released, changes)
        config.train.batch_size = batch
        axes = ("data", "fsdp", "tensor", "sequence")
        config.train.mesh.update(dict(zip(axes, map(int, mesh.split(",")), strict=True)))
        found = dataclasses.asdict(module.compile_plan(config, Path("."), devices))
    case = {
        "stage": stage, "topology": topology, "mesh": mesh, "batch": batch, "variant": variant,
    }  # fmt: skip
    return case | changes | found | {"seconds": round(time.time() - started), "executed": False}


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=("gslrm", "mvdiff"), default="gslrm")
    parser.add_argument("--topology")
    parser.add_argument("--mesh", default="1,4,1,1")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--variant", default="base")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--weak", action="store_true", help="8, 64 and 256 devices")
    parser.add_argument("--out")
    a = parser.parse_args()
    changes = {k: json.loads(v) for k, v in (s.split("=", 1) for s in a.set)}
    cases = WEAK if a.weak else CASES
    if a.topology:
        cases = ((a.stage, a.topology, a.mesh, a.batch, a.variant),)
    failed = 0
    for case in cases:
        try:
            row = compile_case(*case, changes)
        except (MouseLiftError, RuntimeError, ValueError) as error:  # the others are still compiled
            failed += 1
            row = {"case": case, "failed": str(error)[:2000]}
            traceback.print_exc()
        print(json.dumps(row), flush=True)
        if a.out:
            with open(a.out, "a") as file:
                file.write(json.dumps(row) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
