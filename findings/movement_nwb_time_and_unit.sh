#!/usr/bin/env bash
# movement takes from an NWB file's poses the raw numbers and a frame rate: neither their conversion
# to the unit that the file names, nor when the rows were.
#
# The likely guess: NWB says of every series its unit, the factor that leads there (`conversion`) and
# its times (`timestamps`, or `starting_time` and `rate`); a loader of NWB applies them.
# What happens: positions come as they are stored (millimetres with conversion 1e-3 and unit meters
# stay 90, not 0.09); time begins at 0 and goes in even steps of the median interval. A series that
# begins at 100 s, or that lacks frames in the middle, has other times than its file says. No warning.
# Why it matters here: `export --to=nwb` stores mm with their conversion, and a film of chosen frames
# with timestamps. It tells users of such a film to give movement the CSV, whose missing frames are
# empty rows.
# Source: movement 0.15.0, movement/io/load_poses.py, _ds_from_nwb_object
#
# Needs python3.11 or newer with venv. Run: bash findings/movement_nwb_time_and_unit.sh
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv v
v/bin/pip install -q --disable-pip-version-check movement==0.15.0 ndx-pose==0.4.0 pynwb==4.2.0 2> /dev/null
cat > show.py <<'PY'
import datetime

import movement
import numpy as np
from movement.io import load_poses
from ndx_pose import PoseEstimation, PoseEstimationSeries, Skeleton, Skeletons
from pynwb import NWBHDF5IO, NWBFile

times = np.array([100.0, 100.1, 100.2, 100.5])  # 10 a second; two frames are missing
x = 10.0 * np.arange(4)  # mm
file = NWBFile("film", "a", datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
skeleton = Skeleton(name="mouse", nodes=["nose"])
nose = PoseEstimationSeries(
    name="nose", description="nose", data=np.stack([x, x, x], 1), unit="meters", conversion=1e-3,
    reference_frame="the room", confidence=np.ones(4), timestamps=times,
)
behavior = file.create_processing_module("behavior", "what it does")
behavior.add(Skeletons(skeletons=[skeleton]))
behavior.add(PoseEstimation(
    name="PoseEstimation", pose_estimation_series=[nose], skeleton=skeleton, source_software="x",
))
with NWBHDF5IO("a.nwb", "w") as io:
    io.write(file)
with NWBHDF5IO("a.nwb", "r") as io:
    told = io.read().processing["behavior"]["PoseEstimation"].pose_estimation_series["nose"]
    metres = (told.data[:, 0] * told.conversion).tolist()
    print("the file: seconds", told.timestamps[:].tolist(), told.unit, np.round(metres, 3).tolist())
poses = load_poses.from_nwb_file("a.nwb")
found = poses.time.values.round(4).tolist(), poses.position.values.squeeze()[:, 0].tolist()
print("movement", movement.__version__, "seconds", found[0], "x", found[1])
assert found == ([0.0, 0.1, 0.2, 0.3], [0.0, 10.0, 20.0, 30.0]), "CHANGED"
PY
v/bin/python show.py 2> log || { tail -5 log; exit 1; }
