"""Sizes of the networks: `paper` as published, `small` for a lab GPU, `testing` for tests."""

from __future__ import annotations

from ml_collections import ConfigDict

GSLRM = {
    "paper": {},  # 303,565,824 parameters
    "small": {"width": 512, "n_layers": 12},
    "testing": {"width": 96, "head_dim": 32, "n_layers": 3},
}


def gslrm(size: str) -> ConfigDict:
    """The section `model` of a GS-LRM config; the names are those of GSLRMConfig."""
    c = ConfigDict()
    c.width = 1024  # channels of a token
    c.head_dim = 64  # channels of one attention head
    c.n_layers = 24  # transformer blocks
    c.mlp_ratio = 4  # hidden width of the feed-forward layers over width
    c.patch_size = 8  # pixels along a side of a patch
    c.n_gaussian_tokens = 2  # free Gaussians beside those of the pixels
    c.sh_degree = 0  # spherical harmonics of the colours, 0 to 3
    c.ray_embed = "dir_nearest"  # dir_nearest | plucker | plucker_nearest
    c.depth = "around_nearest"  # around_nearest | around_origin | range: where on its ray
    c.log_scale_bias = -2.3  # added to the raw log-scales
    c.max_log_scale = -1.2  # upper bound of the log-scales
    c.opacity_bias = -2.0  # added to the raw opacity logits
    c.mark_source = False  # one learned vector for view 0, another for the others
    c.lock()
    c.update(GSLRM[size])
    return c
