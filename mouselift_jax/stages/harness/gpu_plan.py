"""`--plan --gpu=CARD`: does the training step fit a GPU that is not here, and if not, what does?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from mouselift_jax.errors import ConfigError
from mouselift_jax.stages.harness import cards
from mouselift_jax.stages.harness.cost import Cost, gib

DEFAULT_SHARE = 0.75  # of a GPU's memory that JAX takes unless it is told otherwise
Variant = Callable[[str], ConfigDict]  # the same config file's config of another variant
UNKNOWN = (
    "not in these figures: cuDNN's work space, sorting's (CUB), what autotuning tries, CUDA's "
    "context and libraries (0.5 to 1 GiB)"
)


def describe(
    stage: ModuleType,
    config: ConfigDict,
    path: Path,
    name: str,
    variant: Variant,
) -> str:
    """The compiled step's cost on a card, whether it fits, and the first smaller one that does.

    Args:
        stage: with `compile_plan`.
        config: of the run.
        path: of the run.
        name: of the card.
        variant: the same config file's config of another variant.

    Raises:
        ConfigError: no such card, or a stage that trains nothing.
        MissingExtraError: XLA's compiler for NVIDIA GPUs is not installed.
    """
    card = cards.find_card(name)
    if not hasattr(stage, "compile_plan"):
        raise ConfigError(
            f"stage {config.stage} has no training step to compile",
            where=f"--gpu={name}",
            fix="--plan without --gpu",
        )
    found = on_card(stage, config, path, card)
    lines = [f"for {card.title}, not here: compiled, never run", found.describe()]
    lines += [verdict(found, card), UNKNOWN]
    if not fits(found, card):
        lines += list(_smaller(stage, config, path, card, variant))
    return "\n".join(lines)


def on_card(stage: ModuleType, config: ConfigDict, path: Path, card: cards.Card) -> Cost:
    """Cost of a stage's step on the mesh of its config, each device being this card."""
    sizes = (config.train.mesh[axis] for axis in ("data", "fsdp", "tensor", "sequence"))
    devices = cards.devices(card, math.prod(max(1, n) for n in sizes))
    with cards.instead_of_what_is_here():
        return stage.compile_plan(config, path, devices)


def fits(found: Cost, card: cards.Card) -> bool:
    """Whether a step's memory is less than what is usable of the card's."""
    return found.arguments + found.temporary <= cards.USABLE * card.memory


def verdict(found: Cost, card: cards.Card) -> str:
    """Whether it fits, in words."""
    need = found.arguments + found.temporary
    size = f"{gib(need).strip()} of {gib(card.memory).strip()}"
    if not fits(found, card):
        return f"does not fit: {size}"
    if need > DEFAULT_SHARE * card.memory:
        share = math.ceil(100 * need / card.memory) / 100 + 0.02
        return f"fits if JAX may take it: {size}; set XLA_PYTHON_CLIENT_MEM_FRACTION={share:.2f}"
    return f"fits: {size}"


def _smaller(
    stage: ModuleType,
    config: ConfigDict,
    path: Path,
    card: cards.Card,
    variant: Variant,
) -> Iterator[str]:
    """What to change, each change compiled too, up to the first that fits."""
    for words, changed in _candidates(config, variant):
        found = on_card(stage, changed, path, card)
        yield f"with {words}: {verdict(found, card)}"
        if fits(found, card):
            return
    yield "nothing smaller is known for this card: config.train.mesh.fsdp over more devices"


def _candidates(config: ConfigDict, variant: Variant) -> Iterator[tuple[str, ConfigDict]]:
    mesh = config.train.mesh
    most = config.train.batch_size // (max(1, mesh.data) * mesh.fsdp)  # of one sample a device
    if most > config.train.accum_steps:
        changed = config.copy_and_resolve_references()
        changed.train.accum_steps = most
        yield f"--config.train.accum_steps={most}", changed
    if "lowmem" not in config.variant.split(","):
        changed = variant("lowmem")
        for key in ("samples", "init_from"):
            changed[key] = config[key]
        yield f"the variant lowmem (--config=configs/{config.stage}.py:lowmem)", changed
