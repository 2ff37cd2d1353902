"""gsplat's pure-torch reference rasterizer as a peer to be timed against.

Two of its helpers exist only in CUDA (`rasterize_to_indices_in_range` and nerfacc's weights). They
are replaced by vectorised torch, which is a small part of the time; projection, tile lists and
accumulation are gsplat's own.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import numpy as np


def _weights(torch):
    def render_weight_from_alpha(alphas, ray_indices, n_rays):
        logs = torch.log1p(-alphas.double())
        total = torch.cumsum(logs, 0) - logs
        first = torch.full((n_rays,), len(alphas), dtype=torch.long)
        first.scatter_reduce_(0, ray_indices, torch.arange(len(alphas)), "amin")
        light = torch.exp(total - total[first[ray_indices]]).float()
        return light * alphas, light

    def accumulate_along_rays(weights, values, ray_indices, n_rays):
        source = weights[:, None] if values is None else weights[:, None] * values
        out = torch.zeros(n_rays, source.shape[-1])
        return out.index_add(0, ray_indices, source)

    module = types.ModuleType("nerfacc")
    module.render_weight_from_alpha = render_weight_from_alpha
    module.accumulate_along_rays = accumulate_along_rays
    return module


def _indices(torch):
    def rasterize_to_indices_in_range(first, last, light, means2d, conics, opacities, width, height,
                                      tile_size, offsets, flatten_ids):  # fmt: skip
        means2d, conics, opacities = means2d[0], conics[0], opacities[0]
        rows, cols = offsets.shape[-2:]
        starts = torch.cat([offsets.flatten(), torch.tensor([len(flatten_ids)])]).tolist()
        gaussians, pixels = [], []
        for tile in range(rows * cols):
            ids = flatten_ids[starts[tile] : starts[tile + 1]].long()
            if len(ids) == 0:
                continue
            y, x = torch.meshgrid(
                torch.arange(tile_size) + tile // cols * tile_size,
                torch.arange(tile_size) + tile % cols * tile_size,
                indexing="ij",
            )
            inside = ((x < width) & (y < height)).flatten()
            x, y = x.flatten()[inside], y.flatten()[inside]
            dx = x[:, None] + 0.5 - means2d[ids, 0]
            dy = y[:, None] + 0.5 - means2d[ids, 1]
            a, b, c = conics[ids].T
            alpha = opacities[ids] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
            alpha = alpha.clamp_max(0.999)
            alpha = torch.where(alpha < 1 / 255, 0, alpha)
            keep = (alpha > 0) & (torch.cumprod(1 - alpha, 1) > 1e-4)
            pixel, k = keep.nonzero(as_tuple=True)
            gaussians.append(ids[k])
            pixels.append((y * width + x)[pixel])
        if not gaussians:
            empty = torch.zeros(0, dtype=torch.long)
            return empty, empty, empty
        gaussians, pixels = torch.cat(gaussians), torch.cat(pixels)
        return gaussians, pixels, torch.zeros_like(pixels)

    return rasterize_to_indices_in_range


def gsplat_torch(arrays: dict[str, np.ndarray], size: int, folder: str | None) -> Callable | None:
    """A function(backward) -> picture that runs gsplat's torch code, or None without gsplat."""
    if folder:
        sys.path.append(folder)
    try:
        import torch

        sys.modules.setdefault("nerfacc", _weights(torch))
        from gsplat.cuda import _torch_impl as impl
        from gsplat.cuda import _wrapper
    except ImportError:
        return None
    _wrapper.rasterize_to_indices_in_range = torch.no_grad()(_indices(torch))
    names = ("means", "quats", "scales", "opacities", "colors")
    leaves = [torch.tensor(arrays[k], requires_grad=True) for k in names]
    w2c, K = torch.tensor(arrays["w2c"][:1]), torch.tensor(arrays["K"][:1])
    tiles = -(-size // 16)

    def run(backward: bool) -> np.ndarray:
        means, quats, scales, opacities, colors = leaves
        covars, _ = impl._quat_scale_to_covar_preci(quats, scales, True, False)
        radii, means2d, depths, conics, _ = impl._fully_fused_projection(
            means, covars, w2c, K, size, size, near_plane=0.2
        )
        with torch.no_grad():
            _, ids, flat = impl._isect_tiles(means2d, radii, depths, 16, tiles, tiles)
            offsets = impl._isect_offset_encode(ids, 1, tiles, tiles)
        picture, _ = impl._rasterize_to_pixels(
            means2d, conics, colors[None], opacities[None], size, size, 16, offsets, flat,
            batch_per_iter=10**9,
        )  # fmt: skip
        if backward:
            for leaf in leaves:
                leaf.grad = None
            picture.square().sum().backward()
        return picture.detach().numpy()

    return run


def gsplat_cuda(arrays: dict[str, np.ndarray], size: int, folder: str | None) -> Callable | None:
    """The same with gsplat's CUDA kernels, all views at once; None without a GPU or gsplat."""
    if folder:
        sys.path.append(folder)
    try:
        import torch
        from gsplat import rasterization
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    names = ("means", "quats", "scales", "opacities", "colors")
    leaves = [torch.tensor(arrays[k], requires_grad=True, device="cuda") for k in names]
    w2c, K = (torch.tensor(arrays[k], device="cuda") for k in ("w2c", "K"))

    def run(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            picture, _, _ = rasterization(*leaves, w2c, K, size, size, near_plane=0.2, packed=False)
            if backward:
                for leaf in leaves:
                    leaf.grad = None
                picture.square().sum().backward()
        torch.cuda.synchronize()

    return run
