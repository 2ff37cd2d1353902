#!/usr/bin/env bash
# movement reads anipose's 3D CSV row after row; the frame number that every row carries is not used.
#
# The likely guess: a file whose rows say which frame they are (column fnum, which movement even
# demands) gets its times from it: time = fnum / fps.
# What happens: time = row / fps. Every tenth frame of a 30 fps video, read with fps=30, moves ten
# times too fast; a frame that is missing in the middle shifts all later ones. No warning.
# Why it matters here: `export --to=csv` of a film of every n-th frame. It writes missing frames as
# empty rows, and tells the rate to read it with.
# Source: movement 0.15.0, movement/io/load_poses.py, from_anipose_style_df
#
# Needs python3.11 or newer with venv. Run: bash findings/movement_anipose_fnum.sh
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv v && v/bin/pip install -q --disable-pip-version-check movement==0.15.0 2> /dev/null
cat > show.py <<'PY'
import movement
from movement.io import load_poses

fixed = [f"M_{i}{j}" for i in range(3) for j in range(3)] + [f"center_{i}" for i in range(3)]
head = [f"nose_{p}" for p in ("x", "y", "z", "error", "ncams", "score")] + fixed + ["fnum"]
frames = [0, 10, 20, 40]  # of a 30 fps video; 30 is missing; 3 mm a frame
rows = [[3 * f, 0, 0, 1, 6, 1] + [0] * 12 + [f] for f in frames]
with open("a.csv", "w") as file:
    file.write("\n".join(",".join(map(str, r)) for r in [head, *rows]) + "\n")
poses = load_poses.from_anipose_file("a.csv", fps=30)
times = [round(float(t), 4) for t in poses.time]
print("movement", movement.__version__, "fnum", frames, "-> seconds", times)
assert times == [0.0, 0.0333, 0.0667, 0.1], "CHANGED"  # by fnum: 0, 0.333, 0.667, 1.333
PY
v/bin/python show.py 2> log || { tail -5 log; exit 1; }
