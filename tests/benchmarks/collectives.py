"""What moves between devices in a training step, for every kind of mesh, from compiled programs.

    python -m tests.benchmarks.collectives [--devices 8] [--width 256] [--layers 2] [--size 64]
    python -m tests.benchmarks.collectives --weak       # 8, 64 and 256 devices

The network's loss and update without the rasterizer (which moves nothing but its own views), on
virtual CPU devices; the batch grows with the devices. Bytes are per device and step. FLOPs are
those XLA counts in one device's program, with the loop over layers unrolled, because it counts a
loop's body once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time

WEAK = ("1,8,1,1", "8,8,1,1", "32,8,1,1")
MESHES = ("1,1,1,1", "2,1,1,1", "8,1,1,1", "1,2,1,1", "1,8,1,1", "2,4,1,1", "1,4,2,1", "1,2,1,4")


def main() -> int:
    """Compile each mesh and print a line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--mesh", action="append")
    parser.add_argument("--weak", action="store_true", help="8, 64 and 256 devices")
    a = parser.parse_args()
    if a.weak:
        a.devices, a.mesh = 256, WEAK
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={a.devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from configs import gslrm as config_file
    from mouselift_jax.models import gslrm
    from mouselift_jax.stages.harness import cost
    from mouselift_jax.training.trainer import Trainer
    from tests.benchmarks.bench_train_step import network_only

    gslrm.nn.scan = functools.partial(gslrm.nn.scan, unroll=a.layers)
    for mesh in a.mesh or MESHES:
        sizes = [int(n) for n in mesh.split(",")]
        config = config_file.get_config("tiny")
        config.model.width, config.model.head_dim = a.width, 32
        config.model.n_layers, config.data.size = a.layers, a.size
        config.train.batch_size = sizes[0] * sizes[1]
        for axis, n in zip(("data", "fsdp", "tensor", "sequence"), sizes, strict=True):
            config.train.mesh[axis] = n
        n_devices = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        trainer = Trainer(network_only(config), config.train, devices=jax.devices()[:n_devices])
        started = time.monotonic()
        compiled = trainer.lower().compile()
        made = cost.read(trainer, compiled, time.monotonic() - started)
        found = dataclasses.asdict(made) | {"flops": compiled.cost_analysis()["flops"]}
        weights = sum(x.size * 4 for x in jax.tree.leaves(trainer.shapes))
        print(json.dumps({"mesh": mesh, "weights": weights, **found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
