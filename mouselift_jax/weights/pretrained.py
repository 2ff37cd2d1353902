"""Converted and trained weights as networks ready to apply.

A converted folder holds `<component>/{config.json, params/, checksums.json}` and conversion.json; a
run's folder holds `<component>/config.json` and its checkpoints, or a component in the same form.
`load_pretrained` reads both, and refuses what is incomplete, damaged, or of another network.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from etils import epath

from mouselift_jax.errors import CheckpointError, ConfigError, raise_all
from mouselift_jax.files import mark_made, remove_made
from mouselift_jax.weights import store
from mouselift_jax.weights.networks import network, param_shapes
from mouselift_jax.weights.rules import flatten, unflatten

log = logging.getLogger("mouselift_jax")
RECORD = "conversion.json"
SUMS = "checksums.json"  # written last: a component without it is incomplete
# Fields of a network's config that say how it computes, not what its weights are.
NOT_OF_THE_WEIGHTS = (
    "dtype",
    "remat",
    "attention",
    "sample_size",
    "token_multiple",
    "n_views",
    "animal_share",
    "shared_volume",
)


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            "A file of the converted weights is missing",
            where=path,
            fix="convert again, into a new folder",
        ) from error
    except ValueError as error:
        raise CheckpointError(
            "The file is not valid json",
            where=path,
            found=str(error),
            fix="convert again, into a new folder",
        ) from error


def _converted(folder: epath.Path, component: str) -> tuple[dict, dict]:
    """Config and raw parameters of DIR/<component>, checked against their record."""
    if (folder.parent / RECORD).exists():
        listed = _read_json(folder.parent / RECORD).get("components", {})
        if component not in listed:
            raise CheckpointError(
                f"{RECORD} does not list this component",
                where=folder,
                found=", ".join(listed),
                fix="convert this component too, into a new folder",
            )
    flat = store.read_params(folder / "params")
    _check_values(flat, _read_json(folder / SUMS), folder)
    return _read_json(folder / "config.json"), flat


def _check_values(flat: Mapping[str, np.ndarray], expected: Mapping, where: epath.Path) -> None:
    if flat.keys() != expected.keys():
        odd = sorted(flat.keys() ^ expected.keys())
        raise CheckpointError(
            "The parameters are not those that were written",
            where=where,
            found=", ".join(odd[:5]),
            fix="convert again, into a new folder",
        )
    with ThreadPoolExecutor() as pool:
        sums = dict(zip(flat, pool.map(store.checksum, flat.values()), strict=True))
    bad = [path for path in flat if sums[path] != expected[path]]
    if bad:
        raise CheckpointError(
            f"{len(bad)} parameters are damaged on disk",
            where=where,
            found=", ".join(bad[:5]),
            fix="convert again, into a new folder",
        )


def _check_shapes(flat: Mapping[str, Any], component: str, config: Mapping, where: Any) -> None:
    wanted = flatten(param_shapes(component, config))
    bad = []
    for path in sorted(wanted.keys() | flat.keys()):
        want = list(wanted[path].shape) if path in wanted else "nothing"
        found = list(flat[path].shape) if path in flat else "nothing"
        if want != found:
            bad.append(f"{path}: {found} stored, {want} wanted")
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise CheckpointError(
            f"The weights of {component} do not fit the network of their config",
            where=where,
            found="; ".join(bad[:5]) + more,
            fix="convert again, or give the folder whose config.json belongs to these weights",
        )


def find_component(
    directory: Any, component: str, *, follow: bool = True
) -> tuple[epath.Path, str]:
    """Where a component's weights are: (folder, "converted" | "run").

    Args:
        directory: a converted folder, DIR/<component> of one, or the folder of a run. A component
            that a run did not train is looked up in what the run started from.
        component: a key of `networks()`.
        follow: look in what a run started from; False = only in the folder itself.

    Raises:
        CheckpointError: it is not there.
    """
    network(component)
    root = epath.Path(directory)
    if root.is_file():
        raise CheckpointError(
            "Weights are given as a folder of converted ones, not as a file",
            where=root,
            fix=f"python tools/convert_torch_ckpt.py KIND {root} DIR, then give DIR",
        )
    if not root.exists():
        raise CheckpointError(
            "There is no such folder", where=root, fix="check the path; see docs/checkpoints.md"
        )
    for folder in (root / component, root):
        if folder is root and root.name != component:
            continue
        # conversion.json is written last; a component that a run wrote has the run's config.json.
        complete = (folder.parent / RECORD).exists() or (folder.parent / "config.json").exists()
        if complete and (folder / "params").exists():
            return folder, "converted"
    if (root / component / "config.json").exists() and (root / "checkpoints").exists():
        return root, "run"
    if follow and (root / "config.json").exists():
        start = _read_json(root / "config.json").get("init_from")
        if start:
            return find_component(start, component)
    raise CheckpointError(
        f"There are no weights of {component} here",
        where=root,
        expected=f"{component}/params and {RECORD} (converted weights), or a run that trained it",
        found=", ".join(sorted(p.name for p in root.iterdir())[:12]) or "an empty folder",
        fix="convert them with tools/convert_torch_ckpt.py; see docs/checkpoints.md",
    )


def read_config(directory: Any, component: str) -> dict[str, Any]:
    """The config of a component's network, without reading its weights."""
    folder, kind = find_component(directory, component)
    return _read_json((folder if kind == "converted" else folder / component) / "config.json")


class Stored(NamedTuple):
    """A component as it lies on disk.

    Attributes:
        config: of its network.
        flat: parameters by path.
        note: one line on where they came from.
        step: of the run that they were taken from, 0 for converted weights.
    """

    config: dict[str, Any]
    flat: dict[str, np.ndarray]
    note: str
    step: int


def read_component(directory: Any, component: str, checkpoint: str | int = "best") -> Stored:
    """A component's config and parameters; of a run those of one of its checkpoints.

    `checkpoint`: best | newest | STEP, see `training.run_params.load_run_params`.
    """
    folder, kind = find_component(directory, component)
    step = 0
    if kind == "converted":
        config, flat = _converted(folder, component)
        note = f"{component} from {folder} (converted)"
    else:
        from mouselift_jax.training import lora
        from mouselift_jax.training.run_params import load_run_params

        config = _read_json(folder / component / "config.json")
        found = load_run_params(folder / "checkpoints", checkpoint)
        step = found.step
        which = "moving average" if found.averaged else "weights as trained, no moving average"
        flat = {path: np.asarray(leaf) for path, leaf in flatten(lora.fold(found.params)).items()}
        note = f"{component} from {folder} (run, step {step}, {found.why}; {which})"
    _check_shapes(flat, component, config, folder)
    count = sum(leaf.size for leaf in flat.values())
    return Stored(config, flat, f"{note}: {len(flat)} arrays, {count:,} values", step)


def read_raw(directory: Any, component: str, dtype: Any) -> dict[str, Any]:
    """Parameters of DIR/<component> as they lie there, without any check, as nested arrays."""
    flat = store.read_params(epath.Path(directory) / component / "params")
    return unflatten({path: jnp.asarray(flat.pop(path), dtype) for path in list(flat)})


def load_pretrained(
    directory: Any, component: str, *, dtype: Any = jnp.float32, checkpoint: str | int = "best"
) -> tuple[nn.Module | None, Any]:
    """Load a network with its weights.

    Args:
        directory: a converted folder or the folder of a run (local or gs://).
        component: unet, vae, image_encoder, text_encoder, image_normalizer, gslrm, vgg19, lpips or
            prompt_embeds.
        dtype: of the parameters and of the computation.
        checkpoint: of a run: best | newest | STEP. Which it was is said in the log.

    Returns:
        The module and its parameters, for `module.apply({"params": params}, ...)`; for
        prompt_embeds None and the array [V,T,C].

    Raises:
        CheckpointError: the weights are absent, damaged, or do not fit the network.
    """
    config, flat, note, step = read_component(directory, component, checkpoint)
    if step:
        log.info("%s", note)
    # One at a time: each array read is dropped when its copy exists.
    params = {path: jnp.asarray(flat.pop(path), dtype) for path in list(flat)}
    if component == "prompt_embeds":
        return None, params["prompt_embeds"]
    return network(component).make(config, dtype), unflatten(params)


def save_component(
    directory: Any, component: str, config: Mapping[str, Any], params: Mapping[str, Any]
) -> None:
    """Write DIR/<component> as a conversion does, for a stage that makes one.

    One that this function wrote earlier is replaced.

    Raises:
        CheckpointError: the parameters do not fit the config.
        LayoutError: something else lies there (a converted checkpoint, say); it is left alone.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    folder = epath.Path(directory) / component
    _check_shapes(flat, component, config, folder)
    remove_made(folder)
    folder.mkdir(parents=True)
    mark_made(folder)  # a kill from here on leaves what the next run may replace
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    leaves = {
        path: store.LazyLeaf(leaf.shape, leaf.dtype, lambda leaf=leaf: leaf)
        for path, leaf in flat.items()
    }
    store.write_params(folder / "params", leaves)
    sums = {path: store.checksum(leaf) for path, leaf in flat.items()}
    (folder / SUMS).write_text(json.dumps(sums, indent=1) + "\n")
    mark_made(folder)


def load_initial(
    directory: Any, component: str, expected: Mapping[str, Any], checkpoint: str | int = "best"
) -> tuple[dict[str, Any], str]:
    """Weights to start a training run from: strict, weights only, float32 on the host.

    Args:
        directory: `config.init_from`.
        component: the network that the run trains.
        expected: the run's own network config (`dataclasses.asdict`).
        checkpoint: where `init_from` is a run: best | newest | STEP.

    Returns:
        Nested NumPy parameters and a line for the log: what was loaded from where.

    Raises:
        ConfigError: the run's network differs from the one the weights belong to.
        CheckpointError: see `load_pretrained`.
    """
    config, flat, note, _ = read_component(directory, component, checkpoint)
    problems = [
        ConfigError(
            "The network differs from the one in init_from",
            where=f"config.model.{key}",
            expected=f"{config[key]} (in {directory})",
            found=expected.get(key),
            fix=f"--config.model.{key}={config[key]}, or other weights",
        )
        for key in config
        if key not in NOT_OF_THE_WEIGHTS and key in expected
        if _plain(config[key]) != _plain(expected[key])
    ]
    raise_all("config.init_from", problems)
    params = unflatten({path: np.asarray(leaf, np.float32) for path, leaf in flat.items()})
    return params, note


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
