#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 (v1 Checkpointer) removes folders that it did not write.
#
# Likely guess: a preservation policy (LatestN) chooses among the checkpoints that orbax wrote; a
#   folder without its `_CHECKPOINT_METADATA` is no checkpoint and is left alone.
# What happens: every folder whose name is a number counts as a checkpoint. Opening warns "Metadata
#   file does not exist", and the next save removes those folders with all that is in them, while a
#   folder of any other name stays.
# Why it matters here: the cameras of a multi-camera recording lie in folders 0, 1, 2 ...; one that
#   gets into (or is named as) a folder of checkpoints is lost. training/checkpoint.py refuses.
# Source: orbax.checkpoint.v1.training.Checkpointer, preservation_policies.LatestN.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import os
import sys
from pathlib import Path

import numpy as np
from orbax.checkpoint import v1 as ocp

folder = Path(sys.argv[1])
for name in ("1", "2", "camera"):
    (folder / name).mkdir(parents=True)
    (folder / name / "video.mp4").write_text("not orbax's")
latest = ocp.training.preservation_policies.LatestN(1)
checkpointer = ocp.training.Checkpointer(folder, preservation_policy=latest)
for step in (3, 4):
    checkpointer.save_pytree(step, {"a": np.ones(3)})
checkpointer.close()
left = sorted(p.parent.name for p in folder.glob("*/video.mp4"))
print("steps saved: 3, 4; folders:", sorted(os.listdir(folder)), "; files of ours left in:", left)
assert left == ["camera"], "orbax no longer removes folders that it did not write"
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" -W ignore "$work/show.py" "$work/run" 2>/dev/null
