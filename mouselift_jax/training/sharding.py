"""Which device holds what: the mesh, one table of rules, and the shardings they give.

Axes of the mesh: `data` (copies of the model), `fsdp` (the batch and the weights are split),
`tensor` (heads and hidden units), `sequence` (tokens of one sample). Networks name the axes of
their arrays ("embed", "heads", "tokens", ...); `RULES` says which mesh axis each name is split
over. Weights without names are split along their largest dimension that the fsdp axis divides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mouselift_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "sequence")

# The one table: name of an array's axis -> axes of the mesh it is split over.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    # activations
    ("batch", ("data", "fsdp")),
    ("view", "sequence"),  # views of one sample: rendering
    ("picture", ("data", "fsdp", "sequence")),  # all views of all samples in a row: UNet
    ("tokens", "sequence"),  # queries of GS-LRM
    ("kv_tokens", None),  # keys and values are gathered whole: see the scaling page for why
    ("act_embed", None),
    ("head_dim", None),
    # weights, and activations of the same name
    ("embed", "fsdp"),
    ("qkv", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("conv_in", None),
    ("conv_out", "fsdp"),
    ("layers", None),
    ("patch", None),
    ("vocab", None),
    ("norm", None),
    ("gaussian", None),
)

SMALL = 4 * 2**20  # bytes; smaller weights without named axes are copied to every device


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run.

    Args:
        sizes: devices along each of `AXES`; -1 on one axis takes what the others leave. None =
        all on data.
        devices: the devices, by default all of them.

    Returns:
        A mesh whose axes are all automatic (the compiler places what the rules leave open).

    Raises:
        ConfigError: the product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    wanted = {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1} | dict(sizes or {})
    shape = [int(wanted[axis]) for axis in AXES]
    free = [i for i, n in enumerate(shape) if n == -1]
    fixed = math.prod(n for n in shape if n != -1)
    if len(free) > 1 or any(n < 1 and n != -1 for n in shape) or fixed < 1:
        raise ConfigError(
            "impossible mesh",
            where="config.train.mesh",
            expected="sizes >= 1, at most one -1",
            found=wanted,
            fix="--config.train.mesh.data=-1 takes the devices that the other axes leave",
        )
    if free:
        shape[free[0]] = max(1, len(devices) // fixed)
    if math.prod(shape) != len(devices):
        raise ConfigError(
            "the mesh does not fit the devices",
            where="config.train.mesh",
            expected=f"a product of {len(devices)}",
            found=" x ".join(f"{a}={n}" for a, n in zip(AXES, shape, strict=True)),
            fix="--config.train.mesh.data=-1 takes what the other axes leave",
        )
    auto = (AxisType.Auto,) * len(AXES)
    if len({d.process_index for d in devices}) > 1 and devices[0].platform != "cpu":
        return jax.make_mesh(tuple(shape), AXES, axis_types=auto, devices=devices)
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=auto)


def use(mesh: Mesh) -> AbstractContextManager:
    """Context in which networks' axis names mean the axes of this mesh."""
    stack = ExitStack()
    stack.enter_context(jax.set_mesh(mesh))
    stack.enter_context(nn.logical_axis_rules(RULES))
    return stack


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch_size: int, accum_steps: int, mesh: Mesh) -> None:
    """Each micro-batch must split evenly over the mesh."""
    parts = batch_parts(mesh)
    if min(accum_steps, batch_size) < 1 or batch_size % (accum_steps * parts):
        raise ConfigError(
            "the batch does not split evenly",
            where="config.train.batch_size",
            expected=f"a multiple of accum_steps x data x fsdp = {accum_steps} x {parts}",
            found=batch_size,
            fix=f"--config.train.batch_size={max(1, accum_steps) * parts}, or a multiple of it",
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch as global arrays."""
    sharding = batch_sharding(mesh)

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        if x.dtype == np.float64:
            x = x.astype(np.float32)
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, batch)


def local_rows(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process feeds part i of n of every batch.

    Processes that share the same rows (because tensor or sequence spans them) get the same i.
    """
    grid = mesh.devices.reshape(batch_parts(mesh), -1)
    mine = [
        r for r, row in enumerate(grid) if any(d.process_index == jax.process_index() for d in row)
    ]
    count = len(mine)
    if count == 0 or mine != list(range(mine[0], mine[0] + count)) or len(grid) % count:
        raise ConfigError(
            "the mesh gives this process rows of the batch that are not next to each other",
            where="config.train.mesh",
            found=f"rows {mine} of {len(grid)}",
            fix="let data x fsdp be a multiple of the number of processes",
        )
    return mine[0] // count, len(grid) // count


def infer_spec(shape: Sequence[int], itemsize: int, mesh: Mesh) -> PartitionSpec:
    """Split the largest dimension that fsdp divides, for arrays above 4 MB; else copy."""
    n = mesh.shape["fsdp"]
    if n == 1 or math.prod(shape) * itemsize <= SMALL:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda i: -shape[i]):
        if shape[axis] % n == 0:
            return PartitionSpec(*(["fsdp" if i == axis else None for i in range(len(shape))]))
    return PartitionSpec()


def _fits(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh) -> bool:
    for names, size in zip(spec, shape, strict=False):
        names = () if names is None else (names,) if isinstance(names, str) else names
        if size % math.prod(mesh.shape[n] for n in names):
            return False
    return True


def param_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of weights, boxed with axis names or plain.

    Args:
        abstract: `jax.eval_shape` of the initialisation, names still on it if the network gives
        any.
        mesh: the mesh.

    Returns:
        A plain tree of NamedSharding. Axes whose size the mesh does not divide are not split.
    """
    rules = dict(RULES)

    def one(leaf: Any) -> NamedSharding:
        if isinstance(leaf, nn.LogicallyPartitioned):
            spec = PartitionSpec(*(rules.get(n) if n is not None else None for n in leaf.names))
            shape = leaf.value.shape
            kept = [
                s if _fits(PartitionSpec(s), (d,), mesh) else None
                for s, d in zip(spec, shape, strict=True)
            ]
            return NamedSharding(mesh, PartitionSpec(*kept))
        return NamedSharding(mesh, infer_spec(leaf.shape, leaf.dtype.itemsize, mesh))

    return jax.tree.map(one, abstract, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def like_params(state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of an optimiser state: leaves that mirror a weight go where the weight is.

    A leaf mirrors a weight when its path ends with the weight's path and the shapes agree; every
    other leaf (counters, factored moments) is split as `infer_spec` says.
    """
    by_path = {
        _keys(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def one(path: Any, leaf: Any) -> NamedSharding:
        keys = _keys(path)
        for start in range(len(keys)):
            shape, sharding = by_path.get(keys[start:], (None, None))
            if shape is not None and shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, infer_spec(leaf.shape, leaf.dtype.itemsize, mesh))

    return jax.tree_util.tree_map_with_path(one, state)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
