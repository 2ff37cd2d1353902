"""The one state dict inside whatever a training loop saved, its names freed of the wrappers.

torch.compile, DistributedDataParallel, FSDP, Lightning and averages of weights each put a word
before (or into) every name, in any order, and each loop has its own word for the dictionary.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mouselift_jax.errors import CheckpointError
from mouselift_jax.weights.torch_sources import LazyTensor

RAW = ("model", "state_dict", "model_state_dict", "model_state", "params", "module",
       "net", "network", "generator", "checkpoint")  # fmt: skip
EMA = ("model_ema", "ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict",
       "ema_model_state_dict", "params_ema", "averaged_model")  # fmt: skip
# Words that no network of ours has in a name: they are taken out wherever they stand.
WRAPPERS = ("_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module",
            "_checkpoint_wrapped_module", "_fpw_module")  # fmt: skip
COUNTERS = ("n_averaged", "num_updates")  # torch's averages count steps


def state_dict(
    content: Any, file: Path, weights: str | None = None, *, anchor: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The tensors of one network by their own names, and notes on how they were found.

    Args:
        content: what the file holds: {name: tensor}, or dictionaries around it.
        file: its path, for messages.
        weights: "ema" or "raw" where both are there; None = ema if there.
        anchor: a tensor that the network must have. Where it stands behind another prefix (the
            attribute of a Lightning module), that prefix is taken off too.

    Raises:
        CheckpointError: there is no state dict, or more than one, or a tensor is there twice.
    """
    path, state = _descend(content, weights, file, ())
    notes = [f"took the weights under {' / '.join(path)!r}"] if path not in ((), ("model",)) else []
    names = {key: _unwrapped(key) for key in state if key.split(".")[-1] not in COUNTERS}
    if anchor is not None and anchor not in names.values():
        names = _without_prefix(names, anchor, file)
    count = collections.Counter(names.values())
    twice = sorted(key for key, name in names.items() if count[name] > 1)
    if twice:
        raise CheckpointError(
            "Tensors are there twice, with and without a prefix",
            where=file,
            found=", ".join(twice)[:300],
            fix="it is unclear which were trained: save the state dict of one model only",
        )
    words = sorted({w for key, name in names.items() for w in _taken(key, name)})
    if words:
        notes.append(f"taken out of the names: {', '.join(words)}")
    return {name: state[key] for key, name in names.items()}, notes


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, LazyTensor) for k, v in value.items())
    )


def _descend(
    content: Any, weights: str | None, file: Path, path: tuple[str, ...]
) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    if _is_state(content):
        return path, content
    inner = content if isinstance(content, Mapping) and len(path) < 4 else {}
    there = {
        kind: [n for n in names if isinstance(inner.get(n), Mapping) and inner[n]]
        for kind, names in (("ema", EMA), ("raw", RAW))
    }
    if weights == "ema" and path == () and not there["ema"] and there["raw"]:
        raise CheckpointError(
            "The file holds no moving average of the weights",
            where=file,
            expected=", ".join(EMA),
            found=", ".join(map(str, inner)),
            fix="leave the choice out, or choose the raw weights",
        )
    kinds = ("raw", "ema") if weights == "raw" else ("ema", "raw")
    names = next((there[kind] for kind in kinds if there[kind]), [])
    states = [n for n in names if _is_state(inner[n])] or names
    if len(states) > 1:
        raise CheckpointError(
            "The file holds several state dicts",
            where=file,
            found=", ".join(states),
            fix="save the one that is meant in a file of its own",
        )
    if states:
        return _descend(inner[states[0]], weights, file, (*path, states[0]))
    found = type(content).__name__
    if isinstance(content, Mapping):
        keys = [str(k) for k in content]
        found = "a dictionary with " + (", ".join(keys[:12]) or "nothing")
    raise CheckpointError(
        "The file holds no state dict",
        where=" / ".join([str(file), *path]),
        expected=f"{{name: tensor}}, by itself or under one of {', '.join((*RAW[:3], *EMA[:2]))}",
        found=found,
        fix="give a checkpoint of weights, not one of an optimiser or a whole module",
    )


def _unwrapped(key: str) -> str:
    return ".".join(word for word in key.split(".") if word not in WRAPPERS)


def _without_prefix(names: dict[str, str], anchor: str, file: Path) -> dict[str, str]:
    prefixes = sorted({n.removesuffix(anchor) for n in names.values() if n.endswith("." + anchor)})
    if len(prefixes) > 1:
        raise CheckpointError(
            "The file holds the network more than once",
            where=file,
            found="under the prefixes " + ", ".join(prefixes),
            fix="save the state dict of one of them in a file of its own",
        )
    if not prefixes:  # another network: whoever asked will say which
        return names
    return {key: name.removeprefix(prefixes[0]) for key, name in names.items()}


def _taken(key: str, name: str) -> set[str]:
    kept = name.split(".")
    return set(key.split(".")[: len(key.split(".")) - len(kept)]) | (
        set(key.split(".")) & set(WRAPPERS)
    )
