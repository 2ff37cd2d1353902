"""Low-rank fine-tuning (LoRA, Hu et al., 2021) of any network, on its parameter tree.

A targeted kernel W [in,out] gets siblings `lora_a` [in,r], `lora_b` [r,out] and `lora_scale`; the
network is applied to `fold(params)`, where W + lora_scale * lora_a lora_b stands in W's place. The
network itself knows nothing of it, and a folded tree is an ordinary one: it converts, exports and
serves as before. `lora_b` starts at 0, so training starts from the network as it was.

Train the leaves for which `is_trained` holds and keep the others fixed.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mouselift_jax.errors import ConfigError, nearest

ATTENTION = (r"(^|/)attn[^/]*/.*kernel$",)  # every projection of attention, GS-LRM's and UNet's
_LEAVES = ("lora_a", "lora_b", "lora_scale")


def is_trained(path: Sequence[str], whole: Sequence[str] = ()) -> bool:
    """Whether the leaf at this path is one that low-rank training changes.

    Args:
        path: names from the root to the leaf.
        whole: regular expressions of weights that are trained themselves.
    """
    if path[-1] in _LEAVES:
        return path[-1] != "lora_scale"
    return any(re.search(p, "/".join(path)) for p in whole)


def targets(params: Mapping[str, Any], patterns: Sequence[str] = ()) -> list[str]:
    """Paths of the kernels that the patterns mean; without patterns, all attention projections.

    Raises:
        ConfigError: a pattern that is no regular expression, or that means no kernel.
    """
    paths = [p for p, leaf in _walk(params) if p.endswith("kernel") and _unbox(leaf).ndim >= 2]
    found: set[str] = set()
    for pattern in tuple(patterns) or ATTENTION:
        try:
            hits = {p for p in paths if re.search(pattern, p)}
        except re.error as error:
            raise ConfigError(
                "not a regular expression",
                where="lora.targets",
                found=f"{pattern!r}: {error}",
                fix="escape brackets and dots, or give a plain part of the path",
            ) from error
        if not hits:
            raise ConfigError(
                "no kernel matches this pattern",
                where="lora.targets",
                found=pattern,
                fix=nearest(pattern, paths),
            )
        found |= hits
    return [p for p in paths if p in found]


def add(
    params: Mapping[str, Any],
    rng: jax.Array,
    *,
    rank: int,
    alpha: float = 16.0,
    patterns: Sequence[str] = (),
) -> dict[str, Any]:
    """The tree with low-rank leaves beside every targeted kernel.

    Args:
        params: parameters; leaves may be boxed with logical axes, which the new ones inherit.
        rng: key of the random `lora_a`; each kernel's own key derives from its path.
        rank: r.
        alpha: the product is scaled by alpha / rank.
        patterns: see `targets`.

    Raises:
        ConfigError: rank below 1, or patterns as in `targets`.
    """
    if rank < 1:
        raise ConfigError(
            "a low-rank update needs rank >= 1",
            where="lora.rank",
            found=rank,
            fix="--config.lora.rank=16, or 0 to train the weights themselves",
        )
    chosen = set(targets(params, patterns))

    def visit(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        out = {}
        for name, value in node.items():
            path = f"{prefix}{name}"
            out[name] = visit(value, path + "/") if isinstance(value, Mapping) else value
            if path in chosen:
                key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
                out |= _pair(value, key, rank, alpha)
        return out

    return visit(params, "")


def count(init: Callable[[], Any], low: Any) -> tuple[int, int]:
    """How many weights `init()` makes, nothing allocated, and how many of them are trained.

    Args:
        init: makes the tree, boxed or not.
        low: the section `lora` of a config; rank 0 trains all weights.
    """

    def tree() -> Any:
        params = init()
        if low.rank:
            key = jax.random.key(0)
            params = add(params, key, rank=low.rank, alpha=low.alpha, patterns=low.targets)
        return nn.meta.unbox(params)

    flat = jax.tree_util.tree_leaves_with_path(jax.eval_shape(tree))
    total = sum(x.size for _, x in flat)
    if not low.rank:
        return total, total
    return total, sum(x.size for k, x in flat if is_trained([n.key for n in k], low.whole))


def folded(init: Callable[[], Any], low: Any) -> int:
    """How many weights the kernels with low-rank additions have, nothing allocated.

    A step holds them twice besides: the sums that the network is applied to, and their gradient,
    of which the additions' is made.
    """
    params = nn.meta.unbox(jax.eval_shape(init))
    chosen = set(targets(params, low.targets)) if low.rank else set()
    return sum(leaf.size for path, leaf in _walk(params) if path in chosen)


def fold(params: Mapping[str, Any]) -> dict[str, Any]:
    """The plain tree: low-rank products added to their kernels, in the kernels' dtype."""
    out = {}
    for name, value in params.items():
        if name in _LEAVES:
            continue
        out[name] = fold(value) if isinstance(value, Mapping) else value
    if "lora_a" in params:
        a, b, scale = (params[leaf] for leaf in _LEAVES)
        kernel = params["kernel"]
        update = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        out["kernel"] = kernel + update.reshape(kernel.shape).astype(kernel.dtype)
    return out


def _pair(kernel: Any, key: jax.Array, rank: int, alpha: float) -> dict[str, Any]:
    """The new leaves beside one kernel: [in,out], [layers,in,out] or [kh,kw,in,out]."""
    value = _unbox(kernel)
    lead = value.shape[:1] if value.ndim == 3 else ()
    rows, cols = math.prod(value.shape[len(lead) : -1]), value.shape[-1]
    a = jax.random.normal(key, (*lead, rows, rank), jnp.float32) / math.sqrt(rows)
    b = jnp.zeros((*lead, rank, cols), jnp.float32)
    scale = jnp.asarray(alpha / rank, jnp.float32)
    if isinstance(kernel, nn.LogicallyPartitioned):
        head = kernel.names[: len(lead)]
        # The flattened rows of a convolution have no one axis name.
        in_axis = kernel.names[-2] if value.ndim < 4 else None
        a = nn.LogicallyPartitioned(a, (*head, in_axis, None))
        b = nn.LogicallyPartitioned(b, (*head, None, kernel.names[-1]))
        scale = nn.LogicallyPartitioned(scale, ())
    return dict(zip(_LEAVES, (a, b, scale), strict=True))


def _unbox(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, nn.meta.AxisMetadata) else leaf


def _walk(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            out += _walk(value, f"{prefix}{name}/")
        else:
            out.append((f"{prefix}{name}", value))
    return out
