"""What a stage is: `plan(config, workdir)` touches nothing, `run(config, workdir)` does it.

`NEXT` names the commands that use its result. Their fields: `workdir`, `beside` (the folder it lies
in), `config`, `tiny`, which is ":tiny" for a toy-sized run, and `train`, which makes a training of
GS-LRM one that runs here as it stands. A stage whose result may be useless
has `next_after(config, summary)`, which chooses them by what came out.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import itertools
import runpy
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from mouselift_jax.errors import MouseLiftError, one_of
from mouselift_jax.runs.record import flatten, plain, read_json, read_summary

# A training from nothing has no VGG-19 to compare features with.
FROM_NOTHING = " --config.loss.perceptual=0 --config.loss.ssim=0.2"
STAGES = (
    "prepare",
    "calibrate",
    "fit",
    "prompts",
    "mvdiff",
    "synth",
    "gslrm",
    "infer",
    "eval",
    "demo",
)


@dataclasses.dataclass
class Plan:
    """What a run would read, write and compute.

    Attributes:
        stage: name of the stage.
        reads: paths (with a remark) that are read.
        writes: paths (with a remark) that are written.
        steps: how many steps or items are computed, in words.
        memory: estimate, in words; `--plan` adds the compiled program's own figures.
        skipped: what exists already and is not done again.
        notes: anything else a user should know before starting.
        stops: errors with which the run would end at once.
    """

    stage: str
    reads: list[str] = dataclasses.field(default_factory=list)
    writes: list[str] = dataclasses.field(default_factory=list)
    steps: str = ""
    memory: str = ""
    skipped: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    stops: list[MouseLiftError] = dataclasses.field(default_factory=list)

    def describe(self) -> str:
        """The plan as text for a terminal."""
        lines = [f"plan of stage {self.stage}"]
        for title, value in (
            ("reads", self.reads),
            ("writes", self.writes),
            ("steps", [self.steps] if self.steps else []),
            ("memory", [self.memory] if self.memory else []),
            ("skipped", self.skipped or ["nothing: all of it is still to do"]),
            ("notes", self.notes),
            ("stops", [line for error in self.stops for line in str(error).splitlines()]),
        ):
            lines += [f"  {title if i == 0 else '':<8} {item}" for i, item in enumerate(value)]
        if self.stops:
            lines.append("the run would stop at once, for what stands under `stops`")
        return "\n".join(lines)


def find_stage(name: str) -> ModuleType:
    """The module of a stage, imported when it is needed."""
    one_of(name, STAGES, "no such stage", where="config.stage")
    return importlib.import_module(f"mouselift_jax.stages.{name}")


def next_commands(stage: ModuleType, config: Any, path: Path) -> list[str]:
    """What to type after a stage that ran in the folder `path`; each runs here as it stands.

    Paths are quoted for a shell; a workdir that another run has already gets a number.
    """
    tiny = ":tiny" if "tiny" in config.variant.split(",") else ""
    # A processor alone trains toy networks only; from nothing there is no VGG-19 either.
    train = ":tiny" if tiny or cpu_only() else FROM_NOTHING
    values = SimpleNamespace(**{key: shlex.quote(str(value)) for key, value in config.items()})
    places = {"workdir": shlex.quote(str(path)), "beside": shlex.quote(str(path.parent))}
    choose = getattr(stage, "next_after", None)
    commands = choose(config, read_summary(path)) if choose else stage.NEXT
    texts = [c.format(**places, config=values, tiny=tiny, train=train) for c in commands]
    return [in_a_free_folder(text) for text in texts]


def cpu_only() -> bool:
    """Whether there is no accelerator here."""
    import jax

    return jax.default_backend() == "cpu"


def in_a_free_folder(command: str) -> str:
    """The command with a workdir that is free, or that this very command made."""
    words = shlex.split(command)
    at = next((i for i, w in enumerate(words) if w.startswith("--workdir=")), None)
    if at is None:
        return command
    first = words[at].removeprefix("--workdir=")
    for n in itertools.count(1):
        folder = first if n == 1 else f"{first}_{n}"
        if not Path(folder).exists() or _made_by(words, Path(folder)):
            break
    words[at] = f"--workdir={folder}"
    return command if folder == first else shlex.join(words)


def _made_by(words: list[str], folder: Path) -> bool:
    """Whether the run in a folder has the configuration of this command of launch.py."""
    given = dict(w.removeprefix("--").split("=", 1) for w in words if w.startswith("--"))
    file, _, variant = given.pop("config").partition(":")
    if not Path(file).is_file():
        return False  # told from elsewhere: nothing to compare with
    config = runpy.run_path(file)["get_config"](variant or "base")
    known = flatten(config.to_dict())
    for key, value in given.items():
        key = key.removeprefix("config.")
        if key in known and isinstance(known[key], str | None):
            config.update_from_flattened_dict({key: value})
        elif key in known:
            config.update_from_flattened_dict({key: ast.literal_eval(value)})
    stored = read_json(folder / "config.json")
    return stored is not None and flatten(stored) == flatten(plain(config))
