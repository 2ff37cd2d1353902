"""SIGKILL at random moments: every resume ends where the uninterrupted run ends, bit for bit.

The long form: `python -m tests.training.test_restart 100`. As in a real run, compiled programs
are kept between the processes.
"""

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.training.test_sharding import launch, result

STEPS = 40


def start(folder: Path):
    """The run in a folder, from the beginning or from what is there."""
    return launch(folder, 1, "--steps", STEPS, "--save-every", 3, "--wait-s", 0.05)


def watch(process, limit_s: float = float("inf")) -> float:
    """Processor seconds a process has used when it ends or passes the limit."""
    used = 0.0
    while process.poll() is None and used < limit_s:
        try:
            times = psutil.Process(process.pid).cpu_times()
        except psutil.NoSuchProcess:
            break
        used = times.user + times.system
        time.sleep(0.01)
    return used


def killed(folder: Path, kills: int, seed: int, span_s: float) -> dict:
    """Run, kill, run again...; the last run is left alone. Returns its result and the kills.

    `span_s` is what a whole run takes: kills fall from the start of Python to the last step. It is
    processor time, so that they do so on a busy machine as well.
    """
    rng, done = random.Random(seed), 0
    while done < kills:
        process = start(folder)
        watch(process, rng.uniform(0.1, 1.0) * span_s)
        if process.poll() is not None:
            return result(process, folder) | {"kills": done}
        process.kill()
        process.communicate()
        done += 1
    return result(start(folder), folder) | {"kills": done}


def uninterrupted(folder: Path) -> tuple[dict, float]:
    """The result of a run that nobody kills, and the processor seconds it took."""
    process = start(folder)
    took = watch(process)
    return result(process, folder), took


def test_killed_runs_end_like_the_whole_one(tmp_path):
    whole, took = uninterrupted(tmp_path / "whole")
    found = killed(tmp_path / "cut", 2, 0, took)
    assert found["checksum"] == whole["checksum"] and found["losses"] == whole["losses"]


def main(kills: int) -> int:
    started, total, runs = time.time(), 0, 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "programs")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        uninterrupted(root / "first")
        whole, took = uninterrupted(root / "whole")
        while total < kills:
            found = killed(root / str(runs), min(6, kills - total), runs, took)
            total, runs = total + found["kills"], runs + 1
            same = found["checksum"] == whole["checksum"] and found["losses"] == whole["losses"]
            print(json.dumps({"run": runs, "kills": total, "same": same}), flush=True)
            if not same:
                return 1
    print(json.dumps({"kills": total, "runs": runs, "seconds": round(time.time() - started)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
