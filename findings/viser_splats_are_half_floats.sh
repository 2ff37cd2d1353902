#!/usr/bin/env bash
# viser keeps the covariance of a Gaussian splat as 16-bit floats: in metres, splats below 0.17 mm
# have none at all; in millimetres, those above 256 mm have an infinite one.
#
# The likely guess: positions and covariances are given as float64 arrays and drawn as float32, so
# that the unit of the world does not matter; a scene in metres looks like one in millimetres.
# What happens: variances below half of 6e-8 become 0 and variances above 65504 become inf, before
# anything is sent. A mouse in metres, whose splats are 0.1 to 1 mm, loses its thin splats and gets
# others that are up to 22 % too thick; no error. (The overflow has a RuntimeWarning of numpy.)
# Why it matters here: `view` shows scenes in whatever unit the samples have; it draws in units of a
# typical splat and gives viser the factor as `scale` (report/live.py, near_unit_covariances).
# Source: viser 1.1.1, viser/_scene_api.py, add_gaussian_splats
#
# Needs python3.11 or newer with venv. Run: bash findings/viser_splats_are_half_floats.sh
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv v && v/bin/pip install -q --disable-pip-version-check viser==1.1.1 2> /dev/null
cat > show.py <<'PY'
import contextlib
import io

import numpy as np
import viser

with contextlib.redirect_stdout(io.StringIO()):
    server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)


def arrives(*sigmas):
    """Standard deviations of a splat as they lie in what viser sends."""
    handle = server.scene.add_gaussian_splats(
        "/splat", centers=np.zeros((1, 3)), covariances=np.diag(np.square(sigmas))[None],
        rgbs=np.ones((1, 3)), opacities=np.ones((1, 1)),
    )
    return np.sqrt(handle.buffer[0, 4:7].view(np.float16).astype(float)[[0, 3, 5]]).round(6)


thin, thick, mm = arrives(1.5e-4, 3e-4, 1e-3), arrives(2e-4, 2e-4, 2e-4), arrives(300, 1, 0.1)
print("viser", viser.__version__)
print("metres: 0.00015 0.0003 0.001 ->", *thin, "; 0.0002 ->", thick[0])
print("millimetres: 300 1 0.1 ->", *mm)
with contextlib.redirect_stdout(io.StringIO()):
    server.stop()
assert thin[0] == 0 and thick[0] > 1.2 * 2e-4 and np.isinf(mm[0]) and abs(mm[2] - 0.1) < 1e-4, "CHANGED"
PY
v/bin/python show.py 2> log || { tail -5 log; exit 1; }
