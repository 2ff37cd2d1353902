"""Calibration and keypoint files of labs and tools, in one form.

`calibrations` and `keypoints` list them (a new format is an entry there), `registry` says what an
entry is.
"""

from __future__ import annotations

from mouselift_jax.data.readers.calibration import Calibration, CameraModel, examine
from mouselift_jax.data.readers.calibrations import CALIBRATIONS, find_calibration, read_calibration
from mouselift_jax.data.readers.pickles import load_arrays, read_keypoints_pickle
from mouselift_jax.data.readers.text import natural_key

__all__ = [
    "CALIBRATIONS",
    "Calibration",
    "CameraModel",
    "examine",
    "find_calibration",
    "load_arrays",
    "natural_key",
    "read_calibration",
    "read_keypoints_pickle",
]
