"""What several networks share: logical axes, dense layers, norms, remat policies.

Parameters and activations carry *logical* axis names; one table of rules, in
`mouselift_jax.training.sharding`, maps them to the axes of a device mesh. Without a mesh the names
cost nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mouselift_jax.errors import ConfigError, nearest

AnyArray = jax.Array | np.ndarray  # what public functions take

LOGICAL_AXES = {
    # parameters
    "layers": "the stacked blocks of a scan",
    "embed": "the residual width, input side of most kernels",
    "patch": "the flattened pixels of a patch, input side of the tokeniser",
    "qkv": "fused queries, keys and values, output side",
    "heads": "heads x head size, output side of a projection; of activations: heads",
    "mlp": "the hidden width of a feed-forward layer",
    "vocab": "learned tables: tokens, positions, classes",
    "conv_in": "input channels of a convolution",
    "conv_out": "output channels of a convolution",
    "norm": "scales and biases, one number a channel",
    "gaussian": "raw Gaussian channels of a token",
    # activations
    "batch": "samples",
    "view": "cameras",
    "picture": "the views of all samples in a row, as the UNet has them",
    "tokens": "the token sequence: queries and the residual stream",
    "kv_tokens": "the same sequence as keys and values: gathered where tokens are sharded",
    "act_embed": "the residual width of activations",
    "head_dim": "inside one head",
}


def partitioned(init: Callable, *axes: str | None) -> Callable:
    """An initialiser whose parameter remembers its logical axes."""
    return nn.with_logical_partitioning(init, axes)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Say how an activation is laid out over the mesh, when there is one."""
    return nn.with_logical_constraint(x, axes)


def is_split(axis: str, size: int) -> bool:
    """Whether the mesh in force puts parts of a dimension of this size on different devices."""
    mesh, spec = jax.sharding.get_abstract_mesh(), mesh_spec((axis,), (size,))
    names = spec[0] if spec else None
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(mesh.shape[n] for n in names) > 1


def mesh_spec(axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec | None:
    """Where the mesh in force puts an array with these logical axes, for `jax.shard_map`.

    A dimension that its devices do not divide stays whole on each of them.

    Returns:
        The spec, or None without a mesh of several devices or without logical rules.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or mesh.size == 1 or not rules:
        return None
    parts = []
    for name, size in zip(nn.logical_to_mesh_axes(axes, rules), shape, strict=True):
        names = (name,) if isinstance(name, str) else tuple(name or ())
        names = tuple(n for n in names if n in mesh.axis_names)
        parts.append(names if size % math.prod(mesh.shape[n] for n in names) == 0 else None)
    return PartitionSpec(*parts)


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    name: str,
    *,
    dtype: Any,
    param_dtype: Any = jnp.float32,
    use_bias: bool = False,
    init: Callable | None = None,
    unrounded: bool = False,
) -> nn.Dense:
    """A linear layer with named kernel axes; computes in `dtype`, keeps `param_dtype`.

    `unrounded`: put out the float32 sums of the products, not their rounding to `dtype`.

    Kernels stay 2-D: `DenseGeneral` with logical axes fails to initialise under a mesh, and a 2-D
    kernel is torch's, transposed.
    """
    init = init or nn.initializers.normal(0.02)
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=partitioned(init, *axes),
        bias_init=partitioned(nn.initializers.zeros, axes[1]),
        dot_general=functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        if unrounded
        else None,
        name=name,
    )


def layer_norm(
    name: str, *, epsilon: float = 1e-5, use_bias: bool = False, param_dtype: Any = jnp.float32
) -> nn.LayerNorm:
    """LayerNorm in float32 with torch's epsilon and a two-pass variance."""
    return nn.LayerNorm(
        epsilon=epsilon,
        use_bias=use_bias,
        dtype=jnp.float32,
        param_dtype=param_dtype,
        use_fast_variance=False,
        scale_init=partitioned(nn.initializers.ones, "norm"),
        bias_init=partitioned(nn.initializers.zeros, "norm"),
        name=name,
    )


# What a block keeps for its backward pass. `checkpoint_name` marks the arrays that the last two
# policies speak of.
ATTENTION_OUT, BLOCK_IN = "attention_out", "block_in"
REMAT_POLICIES: dict[str, Callable[[], Any]] = {
    "block": lambda: jax.checkpoint_policies.nothing_saveable,
    "dots": lambda: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": lambda: jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT),
    "offload": lambda: jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_IN],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def remat(module: type[nn.Module], policy: str, **kwargs: Any) -> type[nn.Module]:
    """Recompute a module's inside in the backward pass.

    Args:
        module: the module class.
        policy: `none` keeps every activation; `block` keeps the module's input only; `dots` the
            products of weights as well; `attention` the attention's output as well (its products
            are the dear ones at long sequences); `offload` moves the module's input to the host.
        **kwargs: passed on to `nn.remat`.

    Raises:
        ConfigError: no such policy.
    """
    if policy == "none":
        return module
    if policy not in REMAT_POLICIES:
        known = ("none", *REMAT_POLICIES)
        raise ConfigError("unknown remat policy", where=policy, fix=nearest(policy, known))
    return nn.remat(module, policy=REMAT_POLICIES[policy](), **kwargs)
