"""Sizes of the networks: `paper` as published, `small` for a lab GPU, `testing` for tests."""

from __future__ import annotations

from ml_collections import ConfigDict

GSLRM = {
    "paper": {},
    "small": {"width": 512, "layers": 12, "head_dim": 64},
    "testing": {"width": 64, "layers": 2, "head_dim": 32},
}


def gslrm(size: str) -> ConfigDict:
    """The section `model` of a GS-LRM config."""
    c = ConfigDict()
    c.width = 1024  # channels of a token
    c.layers = 24
    c.head_dim = 64
    c.mlp_ratio = 4
    c.patch = 8  # pixels along a side of a patch
    c.n_gaussians = 2  # free Gaussians beside those of the pixels
    c.sh_degree = 0
    c.lock()
    c.update(GSLRM[size])
    return c
