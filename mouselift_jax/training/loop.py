"""The one training loop."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mouselift_jax.errors import TrainingError
from mouselift_jax.runs.progress import Progress, duration
from mouselift_jax.runs.rows import MetricWriter
from mouselift_jax.training import checkpoint, distributed
from mouselift_jax.training.checkpoint import Checkpoints
from mouselift_jax.training.preempt import Preemption, StopRequested

log = logging.getLogger("mouselift_jax")

WAIT_LIMIT = 0.2  # share of a step spent waiting on data above which the user is told


@dataclasses.dataclass
class Schedule:
    """When things happen; 0 = never, but evaluations and saves happen at the end.

    `*_every` count steps. `*_minutes` are of the clock, and make a thing happen besides when it has
    not happened for so long: steps may take minutes.
    """

    total: int
    log_every: int = 20
    eval_every: int = 0
    picture_every: int = 0
    save_every: int = 500
    log_minutes: float = 0.0
    eval_minutes: float = 0.0
    save_minutes: float = 0.0


@dataclasses.dataclass
class Hooks:
    """What the stage adds to the loop.

    Attributes:
        evaluate: `evaluate(state, step) -> metrics` on held-out data.
        evaluated: `evaluated() -> {name: image [H,W,3]}` of the newest evaluation.
        pictures: `pictures(state, step) -> {name: image [H,W,3]}`.
        flops_per_step: of all devices together, for the utilisation; 0 = unknown.
        warn: tells the user something once.
        replay: the command that repeats a step whose loss was not finite.
        texts: {name: Markdown} shown beside the curves: configuration, provenance.
    """

    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None
    evaluated: Callable[[], Mapping[str, np.ndarray]] | None = None
    pictures: Callable[[Any, int], Mapping[str, np.ndarray]] | None = None
    flops_per_step: float = 0.0
    warn: Callable[[str], None] = log.warning
    replay: str = ""
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def due(step: int, every: int, total: int) -> bool:
    """Whether what happens every so many steps, and at the end, happens after this one."""
    return step >= total or (every > 0 and step % every == 0)


class _Clock:
    """What is due by the clock; the first process's counts for all."""

    LOG, EVAL, SAVE = 1, 2, 4

    def __init__(self, schedule: Schedule) -> None:
        minutes = {
            self.LOG: schedule.log_minutes,
            self.EVAL: schedule.eval_minutes,
            self.SAVE: schedule.save_minutes,
        }
        self._seconds = {flag: 60 * m for flag, m in minutes.items() if m > 0}
        self._last = dict.fromkeys(self._seconds, time.monotonic())
        self._agreement = distributed.Agreement()

    def due(self) -> int:
        """Flags of what is due; all processes must ask after every step."""
        if not self._seconds:
            return 0
        found, now = 0, time.monotonic()
        for flag, seconds in self._seconds.items():
            if now - self._last[flag] >= seconds and jax.process_index() == 0:
                found |= flag
                self._last[flag] = now
        return self._agreement.exchange(found)

    def happened(self, flag: int) -> None:
        """It was done, for whatever reason: its time starts anew."""
        self._last[flag] = time.monotonic()


class _Window:
    """Metrics and times since the last row."""

    def __init__(self) -> None:
        self.metrics: list[Mapping[str, Any]] = []
        self.waited = self.busy = 0.0  # seconds
        self.timed = 0  # steps those seconds are of: all but the one that compiled

    def row(self, flops: float) -> dict[str, float]:
        fetched = jax.device_get(self.metrics)
        row = {
            k: float(np.mean([m[k] for m in fetched])) for k in fetched[-1] if k != "train/finite"
        }
        for last in ("train/skipped", "train/lr"):
            if last in row:
                row[last] = float(fetched[-1][last])
        whole = self.busy + self.waited
        if whole > 0:
            row["train/steps_per_s"] = self.timed / whole
            row["train/data_wait"] = self.waited / whole
            peak = peak_flops()
            if flops and peak:
                row["train/mfu"] = flops * self.timed / whole / peak
        return row


def train(
    state: Any,
    step_fn: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
    batches: Iterator[Any],
    schedule: Schedule,
    *,
    writer: MetricWriter,
    checkpoints: Checkpoints,
    progress: Progress,
    hooks: Hooks | None = None,
    profile: tuple[int, int, Path] | None = None,
) -> Any:
    """Run the steps that are left.

    Args:
        state: a TrainState; its `step` says how many are done.
        step_fn: compiled `(state, batch) -> (state, metrics)`; may take the state's buffers.
        batches: from the state's step on, already on the devices.
        schedule: when to log, evaluate and save.
        writer: of metrics and pictures.
        checkpoints: where the state is saved.
        progress: shows the steps.
        hooks: what the stage adds.
        profile: (first step, last step, folder) of a profiler trace.

    Returns:
        The state after the last step, saved.

    Raises:
        StopRequested: SIGTERM or Ctrl-C; the state was saved.
        TrainingError: a loss or gradient was not finite; the state before that step was saved.
    """
    hooks = hooks or Hooks()
    step = int(state.step)
    window, started, waits, first = _Window(), time.monotonic(), 0, True
    previous: Mapping[str, Any] | None = None
    clock = _Clock(schedule)
    with Preemption() as preemption:
        while step < schedule.total:
            _profile(profile, step, previous)
            begin = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - begin
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_fn(state, batch)
            step += 1
            window.metrics.append(metrics)
            # Looking at the step before keeps one step in flight; nothing moves once one failed.
            _check_finite(state, previous or metrics, checkpoints, hooks)
            previous = metrics
            took = time.monotonic() - begin
            if first:
                log.info(
                    "first step after %s, compilation included",
                    duration(time.monotonic() - started),
                )
                first = False
            else:
                window.waited += waited
                window.busy += took - waited
                window.timed += 1
            stop = preemption.agreed()
            by_clock = clock.due()
            if due(step, schedule.log_every, schedule.total) or stop or by_clock & clock.LOG:
                clock.happened(clock.LOG)
                row = window.row(hooks.flops_per_step)
                writer.scalars(step, row)
                waits = _tell_waiting(row, waits, hooks)
                window = _Window()
                progress.update(1, loss=row["train/loss"])
            else:
                progress.update(1)
            with progress.pause():
                measured: Mapping[str, float] = {}
                judged = due(step, schedule.eval_every, schedule.total) or by_clock & clock.EVAL
                if hooks.evaluate and judged and not stop:
                    measured = _evaluate(state, step, writer, hooks, preemption, checkpoints.best)
                    clock.happened(clock.EVAL)
                drawn = bool(measured and hooks.evaluated)  # an evaluation brings its own
                draw = step == 1 or due(step, schedule.picture_every, schedule.total)
                if schedule.picture_every and draw and not drawn and not stop:
                    _draw(state, step, writer, hooks, preemption)
                stop = stop or preemption.left
                save = due(step, schedule.save_every, schedule.total) or by_clock & clock.SAVE
                if stop or save or checkpoints.is_best(measured):
                    # A failed update's state has the number of the step before, not this one.
                    _check_finite(state, metrics, checkpoints, hooks)
                    checkpoints.save(step, checkpoint.state_items(state), measured)
                    clock.happened(clock.SAVE)
            if stop:
                checkpoints.wait()
                raise StopRequested(stop, f"saved at step {step} of {schedule.total}")
    _profile(profile, step, previous, end=True)
    if previous is not None:
        _check_finite(state, previous, checkpoints, hooks)
    checkpoints.wait()
    return state


def _check_finite(
    state: Any, metrics: Mapping[str, Any], checkpoints: Checkpoints, hooks: Hooks
) -> None:
    if bool(metrics["train/finite"]):
        return
    bad = int(state.step)  # it did not advance past the step that failed
    checkpoints.save(bad, checkpoint.state_items(state))
    checkpoints.wait()
    told = {k: f"{float(v):.4g}" for k, v in metrics.items() if "loss" in k or "norm" in k}
    raise TrainingError(
        f"the loss or its gradient is not finite at step {bad}",
        where=checkpoints.directory,
        found=", ".join(f"{k}={v}" for k, v in told.items()),
        fix="the state just before it is saved. Replay this step: "
        f"{hooks.replay or 'the same command'} --debug. A lower config.train.optim.lr in a new "
        "--workdir often cures it",
    )


def _tell_waiting(row: Mapping[str, float], waits: int, hooks: Hooks) -> int:
    """Say it once, when two rows running spent too long waiting on data."""
    if waits == 2:
        return waits
    waits = waits + 1 if row.get("train/data_wait", 0.0) > WAIT_LIMIT else 0
    if waits == 2:
        hooks.warn(
            f"steps wait on data {100 * row['train/data_wait']:.0f} % of their time: raise "
            "config.data.workers, or put the samples on a faster disk"
        )
    return waits


def _evaluate(
    state: Any, step: int, writer: MetricWriter, hooks: Hooks, preemption: Preemption, best: str
) -> Mapping[str, float]:
    """Figures of this step, written with their pictures; {} when they were left out."""
    measured = preemption.attempt(hooks.evaluate, state, step)
    if not measured:
        return measured
    writer.scalars(step, measured)
    for name, image in (hooks.evaluated or dict)().items():
        writer.image(step, name, image)
    if best and best not in measured:
        hooks.warn(
            f"no checkpoint is kept as the best: the evaluation has no figure {best!r} "
            f"(config.train.keep_best), only {', '.join(sorted(measured))}"
        )
    return measured


def _draw(
    state: Any, step: int, writer: MetricWriter, hooks: Hooks, preemption: Preemption
) -> None:
    if not hooks.pictures:
        return
    for name, image in preemption.attempt(hooks.pictures, state, step).items():
        writer.image(step, name, image)


def _profile(
    profile: tuple[int, int, Path] | None, step: int, previous: Any, *, end: bool = False
) -> None:
    """Start or stop the trace; `previous` is what the last step traced puts out."""
    if profile is None:
        return
    first, last, folder = profile
    if step == first and not end:
        jax.profiler.start_trace(str(folder))
        log.info("profiler trace of steps %d to %d goes to %s", first, last, folder)
    if (step == last and not end) or (end and first <= step < last):
        jax.block_until_ready(previous)
        jax.profiler.stop_trace()


def peak_flops() -> float:
    """Dense bfloat16 FLOP/s of all devices together by their data sheets, 0 when unknown."""
    kind = jax.devices()[0].device_kind.lower()
    for name, tera in PEAK_TFLOPS:
        if name in kind:
            return tera * 1e12 * jax.device_count()
    return 0.0


# Data sheets, dense bfloat16, TFLOP/s for one JAX device.
PEAK_TFLOPS = (
    ("h200", 989.0),
    ("h100", 989.0),
    ("a100", 312.0),
    ("a6000", 155.0),
    ("l40s", 362.0),
    ("4090", 165.0),
    ("3090", 71.0),
    ("v6 lite", 918.0),
    ("v6e", 918.0),
    ("v5 lite", 197.0),
    ("v5e", 197.0),
    ("v5p", 459.0),
    ("v4", 275.0),
)


def profile_range(text: str | None, folder: Path) -> tuple[int, int, Path] | None:
    """The steps of --profile=A:B."""
    if not text:
        return None
    from mouselift_jax.errors import ConfigError

    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ConfigError(
            "not a range of steps",
            where=f"--profile={text}",
            expected="A:B with A < B",
            fix="--profile=10:15",
        )
    return int(first), int(last), folder
