"""Every number of the rasterizer's definition, with its reason.

The definition is the one that 3D Gaussian Splatting made common; docs/rasterizer.md has the
formulas and the table of deliberate differences.
"""

from __future__ import annotations

# Gaussians nearer than this to the camera plane are not drawn (scene units): perspective blows up.
NEAR = 0.2
# Added to both diagonal entries of the 2D covariance, px^2: nothing gets thinner than a pixel.
DILATION = 0.3
# A smaller opacity at a pixel would round to nothing in 8 bits and is skipped.
ALPHA_MIN = 1.0 / 255.0
# No single Gaussian hides all that is behind it, so 1 - alpha can be divided by.
ALPHA_MAX = 0.99
# A blend that would leave less light than this is not done and ends the pixel.
TRANSMITTANCE_MIN = 1e-4
# The linearised projection is taken no further out than this many half pictures.
FOV_CLAMP = 1.3
# Quaternions are divided by their largest entry, so any norm works; below this it is the identity.
QUAT_MIN = 1e-18
# A standard deviation above this (px) overflows the float32 determinant: culled as not finite.
SIGMA_MAX = 1e9
# Beyond this many focal lengths from the axis a mean is off any picture; keeps gradients finite.
SLOPE_MAX = 1e9
# Work tile of `tiled`, px: at GS-LRM's splat sizes 8 costs a quarter of 16's evaluations for 6 %
# more list entries. Grows where the tile number and the rank do not fit 32 bits together.
TILE = 8
