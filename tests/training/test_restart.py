"""SIGKILL at random moments: every resume ends where the uninterrupted run ends, bit for bit.

The long form: `python -m tests.training.test_restart 100`.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.training.test_sharding import launch, result

STEPS = 40


def killed(folder: Path, kills: int, seed: int, span_s: float) -> dict:
    """Run, kill, run again...; the last run is left alone. Returns its result and the kills.

    `span_s` is what a whole run takes: kills fall from the start of Python to the last step.
    """
    rng, done = random.Random(seed), 0
    while done < kills:
        process = launch(folder, 1, "--steps", STEPS, "--save-every", 3, "--wait-s", 0.05)
        try:
            process.communicate(timeout=rng.uniform(0.1, 1.0) * span_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done += 1
            continue
        assert process.returncode == 0
        return json.loads((folder / "result.json").read_text()) | {"kills": done}
    return result(
        launch(folder, 1, "--steps", STEPS, "--save-every", 3, "--wait-s", 0.05), folder
    ) | {"kills": done}


def uninterrupted(folder: Path) -> tuple[dict, float]:
    """The result of a run that nobody kills, and how long it took."""
    started = time.time()
    process = launch(folder, 1, "--steps", STEPS, "--save-every", 3, "--wait-s", 0.05)
    return result(process, folder), time.time() - started


def test_killed_runs_end_like_the_whole_one(tmp_path):
    whole, took = uninterrupted(tmp_path / "whole")
    found = killed(tmp_path / "cut", 2, 0, took)
    assert found["checksum"] == whole["checksum"] and found["losses"] == whole["losses"]


def main(kills: int) -> int:
    started, total, runs = time.time(), 0, 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
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
