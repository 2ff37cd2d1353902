"""One stage, run in this process as the command line runs it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from mouselift_jax.runs.folder import Workdir
from mouselift_jax.runs.record import read_summary


def run(stage: ModuleType, config: Any, path: Path) -> dict[str, Any]:
    """Run a stage; returns what it wrote into summary.json."""
    with Workdir(path, config) as workdir:
        stage.run(config, workdir)
    return read_summary(path)
