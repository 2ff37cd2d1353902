"""The frame that the published weights were taught in: its rig, its box, said once."""

from __future__ import annotations

import numpy as np

PRETRAINED_HALF_FOV_DEG = 25.0  # the published rig: f = 548.99 px at 512 px


FRONT_AZIMUTH_DEG = 270.0  # where the published rig's front camera stands


# What the network can represent: Gaussians lie within 1.8 of the ray's point nearest the origin,
# and exports keep this box.
MAX_RAY_OFFSET = 1.8


EXPORT_BOX = np.array([0.91, 0.91, 1.0])
