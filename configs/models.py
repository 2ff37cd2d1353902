"""Sizes of the networks: `paper` as published, `small` for a lab GPU, `testing` for tests."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

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
    c.depth = "around_nearest"  # around_nearest | around_origin | range | hull: where on its ray
    c.depth_bias = 0.0  # added to the raw depths
    c.log_scale_bias = -2.3  # added to the raw log-scales
    c.max_log_scale = -1.2  # upper bound of the log-scales
    c.min_log_scale = placeholder(float)  # lower bound, about a pixel's width; published: none
    c.opacity_bias = -2.0  # added to the raw opacity logits
    c.pixel_skip = False  # a linear map from each pixel to its own Gaussian; published: False
    c.animal_share = placeholder(float)  # room for the animal's patches; published: None = all
    c.shared_volume = False  # Gaussians outside of an input picture are transparent (BEAST3D)
    c.mark_source = False  # one learned vector for view 0, another for the others
    c.lock()
    c.update(GSLRM[size])
    return c


MVUNET = {
    "paper": {},  # 870,184,644 parameters
    "testing": {
        "block_channels": (32, 64),
        "block_attends": (True, True),
        "heads": (2, 4),
        "layers_per_block": 1,
        "context_dim": 32,
        "class_dim": 64,
        "norm_groups": 8,
    },
}


def mvunet(size: str) -> ConfigDict:
    """The section `model` of a multi-view diffusion config; the names are those of MVUNetConfig."""
    c = ConfigDict()
    c.in_channels = 8  # noisy latents, then those of the reference picture
    c.out_channels = 4  # of the latents that it predicts
    c.block_channels = (320, 640, 1280, 1280)  # of each resolution, from fine to coarse
    c.block_attends = (True, True, True, False)  # levels with attention, on the way down
    c.heads = (5, 10, 20, 20)  # attention heads of each level
    c.layers_per_block = 2  # residual blocks at each resolution
    c.context_dim = 1024  # width of the prompt embeddings
    c.class_dim = 2048  # twice the width of the image embeddings
    c.norm_groups = 32  # of the group norms
    c.norm_eps = 1e-5  # of the group norms
    c.n_views = 6  # views made together
    c.attention = "sparse"  # sparse (as released: slot 0 and own) | dense | none
    c.pose_features = 0  # hidden width of the pose input; 0 = none
    c.lock()
    c.update(MVUNET[size])
    return c
