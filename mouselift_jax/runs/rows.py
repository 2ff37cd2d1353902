"""Where numbers, pictures and text of a run go: metrics.jsonl and TensorBoard files.

A resumed run cuts off what an earlier visit wrote past the step it resumes from, so no step is
told twice. Only the first of several processes writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import LayoutError
from mouselift_jax.files import write_text_atomic


class MetricWriter:
    """Context that records what happens at a step.

    Args:
        workdir: folder of the run.
        resume_step: rows of later steps are dropped.
        primary: whether this process writes.
        wandb: mirror the scalars to Weights & Biases, if it is installed and configured.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        resume_step: int = 0,
        primary: bool = True,
        wandb: bool = False,
    ) -> None:
        self.last: dict[str, float] = {}
        self._primary, self._wandb, self._board, self._file = primary, None, None, None
        self.path = Path(workdir) / "metrics.jsonl"
        for row in read_rows(self.path):
            if row["step"] <= resume_step:
                self.last.update({k: v for k, v in row.items() if k != "step" and v is not None})
        if not primary:
            return
        if self.path.exists():
            kept = [r for r in read_rows(self.path) if r["step"] <= resume_step]
            write_text_atomic(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        from tensorboardX import SummaryWriter

        purge = resume_step + 1 if resume_step else None
        self._board = SummaryWriter(str(workdir), purge_step=purge, flush_secs=30)
        self._file = open(self.path, "a", buffering=1)
        if wandb:
            self._wandb = _wandb_run(workdir)

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close the files."""
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One row; values that are not finite are written as null."""
        values = {k: float(v) for k, v in values.items()}
        self.last.update({k: v for k, v in values.items() if math.isfinite(v)})
        if self._file is None:
            return
        row = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": int(step), **row}) + "\n")
        for key, value in values.items():
            self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=int(step))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture [H,W,3], float in [0,1] or uint8."""
        if self._board is None:
            return
        image = np.asarray(image)
        if image.dtype != np.uint8:
            image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
        self._board.add_image(name, image, step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """A text, shown as Markdown."""
        if self._board is not None:
            self._board.add_text(name, text, step)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, [] when there is none; a last line cut short by a kill is left out.

    Raises:
        LayoutError: another line is damaged.
    """
    rows = []
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            float(row["step"])
        except (KeyError, TypeError, ValueError) as error:
            if i == len(lines) - 1:
                break
            raise LayoutError(
                "a line of metrics.jsonl is damaged",
                where=f"{path}:{i + 1}",
                found=line[:80],
                fix="remove that line",
            ) from error
        rows.append(row)
    return rows


def _wandb_run(workdir: str | Path) -> Any:
    from mouselift_jax.errors import MissingExtraError

    try:
        import wandb
    except ImportError as error:
        raise MissingExtraError("wandb", "wandb", "config.train.wandb") from error
    return wandb.init(dir=str(workdir), id=Path(workdir).name, resume="allow")
