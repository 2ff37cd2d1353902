"""Compile the rasterizers for TPUs that are not here, and report the memory the compiler plans.

    pip install libtpu==0.0.42.1
    python -m tests.benchmarks.tpu_aot_render --topology v5e:2x2 --gaussians 393218 --size 256

libtpu carries the whole TPU compiler; only execution needs the device. Nothing here was executed.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from mouselift_jax.render import rasterize


def compile_case(device, n: int, views: int, size: int, backward: bool) -> dict:
    sharding = SingleDeviceSharding(device)

    def spec(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    gaussians = (spec(n, 3), spec(n, 4), spec(n, 3), spec(n), spec(n, 1, 3))
    cameras = (spec(views, 4, 4), spec(views, 3, 3))
    target = spec(views, size, size, 3)

    def draw(gaussians, cameras):
        return rasterize(
            *gaussians, *cameras, size, size, sh_degree=0, background=(1, 1, 1),
            implementation="tiled",
        ).rgb  # fmt: skip

    def loss(gaussians, cameras, target):
        return jnp.square(draw(gaussians, cameras) - target).mean()

    begin = time.perf_counter()
    if backward:
        lowered = jax.jit(jax.value_and_grad(loss)).lower(gaussians, cameras, target)
    else:
        lowered = jax.jit(draw).lower(gaussians, cameras)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    return {
        "device": device.device_kind,
        "gaussians": n,
        "views": views,
        "size": size,
        "backward": backward,
        "compile_s": round(time.perf_counter() - begin, 1),
        "argument_mb": round(memory.argument_size_in_bytes / 2**20, 1),
        "output_mb": round(memory.output_size_in_bytes / 2**20, 1),
        "temporary_mb": round(memory.temp_size_in_bytes / 2**20, 1),
        "program_mb": round(memory.generated_code_size_in_bytes / 2**20, 1),
        "flops_of_one_pass": cost.get("flops"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--gaussians", type=int, default=393218)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--out", help="append one JSON line per case to this file")
    args = parser.parse_args()
    device = topologies.get_topology_desc(args.topology, "tpu").devices[0]
    for backward in (False,) if args.forward_only else (False, True):
        row = compile_case(device, args.gaussians, args.views, args.size, backward)
        print(json.dumps(row), flush=True)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
