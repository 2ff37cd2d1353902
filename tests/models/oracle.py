"""Torch state dicts into this project's modules, for parity tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from mouselift_jax.models.mvunet import MVUNetConfig
from mouselift_jax.weights.rules import apply_rules

TINY_UNET = MVUNetConfig(
    sample_size=8,
    block_channels=(8, 16),
    block_attends=(True, False),
    heads=(2, 2),
    layers_per_block=1,
    context_dim=12,
    class_dim=16,
    norm_groups=4,
    n_views=6,
)


def shapes(module: nn.Module, *args: Any, **kw: Any) -> dict:
    """The parameter tree of `module` as shapes; nothing is allocated."""
    variables = jax.eval_shape(
        lambda args, kw: module.init(jax.random.key(0), *args, **kw), args, kw
    )
    return nn.meta.unbox(variables)["params"]


def load(rules: Sequence, source: Mapping[str, Any], module: nn.Module, *args: Any, **kw: Any):
    """Parameters of `module` from a torch state dict (arrays or tensors)."""
    source = {k: np.asarray(v) for k, v in source.items()}
    return jax.tree.map(jax.numpy.asarray, apply_rules(rules, source, shapes(module, *args, **kw)))


def manifest(path: Path) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape from a key manifest."""
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return {row[0]: tuple(int(n) for n in row[1].split("x")) for row in rows}


def l2(found: Any, expected: Any) -> float:
    """Relative L2 error."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def peak(found: Any, expected: Any) -> float:
    """Largest error over the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def nhwc(x: Any) -> np.ndarray:
    """[..., C, H, W] -> [..., H, W, C]."""
    return np.moveaxis(np.asarray(x), -3, -1)


def tensors(path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of a safetensors file whose name begins with `prefix`, without it."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        names = [k for k in file.keys() if k.startswith(prefix)]
        return {k[len(prefix) :]: file.get_tensor(k) for k in names}


def metadata(path: Path) -> dict[str, str]:
    """The header's free text of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return file.metadata() or {}
