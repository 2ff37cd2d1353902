"""What a stage is: `plan(config, workdir)` touches nothing, `run(config, workdir)` does it.

`NEXT` names the commands that use its result. Their fields: `workdir`, `beside` (the folder it lies
in), `config`, and `tiny`, which is ":tiny" for a toy-sized run. A stage whose result may be useless
has `next_after(config, summary)`, which chooses them by what came out.
"""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from mouselift_jax.errors import MouseLiftError, one_of
from mouselift_jax.runs.record import read_summary

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
    """What to type after a stage that ran in the folder `path`; paths are quoted for a shell."""
    tiny = ":tiny" if "tiny" in config.variant.split(",") else ""
    values = SimpleNamespace(**{key: shlex.quote(str(value)) for key, value in config.items()})
    places = {"workdir": shlex.quote(str(path)), "beside": shlex.quote(str(path.parent))}
    choose = getattr(stage, "next_after", None)
    commands = choose(config, read_summary(path)) if choose else stage.NEXT
    return [command.format(**places, config=values, tiny=tiny) for command in commands]
