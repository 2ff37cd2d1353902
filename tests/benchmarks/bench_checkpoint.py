"""How long a checkpoint keeps training waiting, how long it takes to disk and back.

    python -m tests.benchmarks.bench_checkpoint [--mib 256] [--repeat 3] [--dir DIR]

`blocked` is what a training step waits for; `whole` is until the checkpoint is complete; `restore`
includes checking every bit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from mouselift_jax.training.checkpoint import Checkpoints, abstract_like
from tests.benchmarks import report


def measure(folder: Path, mib: int, repeat: int) -> list[dict[str, float]]:
    """Save and restore a state of some size."""
    leaves = max(1, mib // 16)
    keys = jax.random.split(jax.random.key(0), leaves)
    state = {"params": {f"w{i}": jax.random.normal(k, (2048, 2048)) for i, k in enumerate(keys)}}
    jax.block_until_ready(state)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = abstract_like(state, jax.tree.map(lambda _: one, state))
    rows = []
    with Checkpoints(folder, keep=1) as checkpoints:
        for step in range(repeat + 1):
            cpu, started = time.process_time(), time.perf_counter()
            checkpoints.save(step, state)
            blocked = time.perf_counter() - started
            checkpoints.wait()
            whole = time.perf_counter() - started
            started = time.perf_counter()
            checkpoints.restore(shapes)
            back = time.perf_counter() - started
            if step:  # the first one compiles the checksum
                rows.append(
                    {
                        "mib": leaves * 16,
                        "blocked_s": blocked,
                        "whole_s": whole,
                        "restore_s": back,
                        "processor_s": time.process_time() - cpu,
                    }
                )
            state = jax.tree.map(lambda x: x + jnp.float32(1), state)
    return rows


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=a.dir) as folder:
        rows = measure(Path(folder), a.mib, a.repeat)
    report.write("checkpoint", {"": rows}, a.out)


if __name__ == "__main__":
    main()
