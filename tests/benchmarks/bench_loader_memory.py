"""How much of the host's memory a loader takes, for the batches of the recipes.

    python -m tests.benchmarks.bench_loader_memory [--out FILE]

Each row is a process of its own that reads two batches of 512 px samples and holds the last one, as
a training does while its step runs: growth of the largest resident size over that after imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.bench_loader import make_set

# Whose batch: samples of a batch, goal in GiB. Pictures are handed to the device as bytes.
RECIPES = {
    "gslrm:base": (16, 0.3),
    "mvdiff:base": (16, 0.3),
    "mvdiff:facelift": (128, 2.0),
}
READ = """
import json, resource, sys
import jax, numpy
from mouselift_jax.data.batches.loader import Views, make_loader
path, size = sys.argv[1], int(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
how = dict(batch_size=2, views=Views("first", 6), size=512, composited=False)
next(iter(make_loader(path, **how)))  # imports
before = peak()
batches = iter(make_loader(path, **(how | {"batch_size": size})))
held = next(batches)
first = peak() - before
held = next(batches)
batch = sum(x.nbytes for x in held if x is not None) / 2**30
print(json.dumps({"one batch, GiB": batch, "first batch, GiB": first, "GiB": peak() - before}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = make_set(Path(folder) / "set", (100, 50))
        for name, (size, goal) in RECIPES.items():
            command = [sys.executable, "-c", READ, str(path), str(size)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = {k: round(v, 3) for k, v in json.loads(out.splitlines()[-1]).items()}
            rows.append({"recipe": name, "samples": size, **found, "goal, GiB": goal})
    report.write("loader_memory", {"": rows}, args.out, device="cpu")


if __name__ == "__main__":
    main()
