"""What a compiled training step costs, read from the program itself."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mouselift_jax.runs.progress import duration
from mouselift_jax.training import sharding
from mouselift_jax.training.trainer import Trainer

CPU_FLOPS = 2e11  # of a step; more is not run on processors for the sake of a plan

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4}
_BYTES |= {"u32": 4, "f64": 8, "s64": 8, "u64": 8}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step on one device, unless it says otherwise.

    Attributes:
        mesh: devices along each axis.
        params: bytes of the weights, trained and frozen.
        optimiser: bytes of moments and moving average.
        temporary: bytes of activations and work space, by the compiler's own plan.
        arguments: bytes of everything handed in, the state included.
        flops: useful floating-point operations of the whole step on all devices, by arithmetic.
        collectives: {kind: (count, bytes)} of data a device receives; loops counted by their
        length.
        largest: bytes of the largest single one.
        compile_s: seconds the compiler took.
        steps: updates of the whole run.
        step_s: seconds of one step here, None where none was run.
        untimed: why none was run.
    """

    mesh: dict[str, int]
    params: int
    optimiser: int
    temporary: int
    arguments: int
    flops: float
    collectives: dict[str, tuple[int, int]]
    largest: int
    compile_s: float
    steps: int = 0
    step_s: float | None = None
    untimed: str = ""

    def describe(self) -> str:
        """As text for a terminal."""
        size = " x ".join(f"{k}={v}" for k, v in self.mesh.items())
        lines = [
            f"compiled step on {size}, for each device (compiled in {self.compile_s:.0f} s)",
            f"  weights     {gib(self.params)}",
            f"  optimiser   {gib(self.optimiser)}",
            f"  activations {gib(self.temporary)}  (the compiler's temporary buffers)",
            f"  in all      {gib(self.arguments + self.temporary)}",
            f"  FLOPs       {self.flops:.3e} a step on all devices (arithmetic: networks, without "
            "what the backward pass recomputes)",
        ]
        if not self.collectives:
            lines.append("  traffic     none")
        for kind, (count, size) in sorted(self.collectives.items()):
            lines.append(f"  traffic     {kind:<18} {count:>6} x, {gib(size)} a step")
        if self.collectives:
            lines.append(f"  traffic     largest single one {gib(self.largest)}")
        if self.step_s is not None:
            lines.append(
                f"  time        {self.step_s:.3g} s a step, measured here with random weights: "
                f"{duration(self.step_s * self.steps)} for {self.steps} steps, without evaluations"
            )
        elif self.untimed:
            lines.append(f"  time        not measured: {self.untimed}")
        return "\n".join(lines)


def gib(n: float) -> str:
    """Bytes for people."""
    return f"{n / 2**30:8.3f} GiB" if n >= 2**20 * 10 else f"{n / 2**10:8.1f} KiB"


def cost(trainer: Trainer, batch: Callable[[], Any] | None = None) -> Cost:
    """Compile a trainer's step on shapes alone and read what it costs.

    Args:
        trainer: of a task whose constants may be shapes.
        batch: makes this process's rows of a batch; with it, the step is run and timed where the
            memory is there and a processor would not take minutes.
    """
    lowered = trainer.lower()
    started = time.monotonic()
    compiled = lowered.compile()
    found = read(trainer, compiled, time.monotonic() - started)
    if batch is None:
        return found
    untimed = _too_much(found)
    step_s = None if untimed else _timed(trainer, compiled, batch())
    steps = trainer.config.steps
    return dataclasses.replace(found, steps=steps, step_s=step_s, untimed=untimed)


def blank_batch(trainer: Trainer) -> Any:
    """This process's rows of a batch of zeros."""
    parts = trainer.rows[1]
    return jax.tree.map(
        lambda x: np.zeros((x.shape[0] // parts, *x.shape[1:]), x.dtype), trainer.task.batch
    )


def _too_much(found: Cost) -> str:
    """Why a step should not be run to time it, "" if it should."""
    device = jax.devices()[0]
    if device.platform == "cpu" and found.flops > CPU_FLOPS:
        return f"{found.flops:.1e} FLOPs a step are minutes on processors"
    stats = device.memory_stats() or {}
    there = stats.get("bytes_limit") or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    need = found.arguments + found.temporary
    if need > 0.9 * there:
        return f"a step needs {gib(need).strip()}, there are {gib(there).strip()}"
    return ""


def _timed(trainer: Trainer, compiled: Any, batch: Any) -> float:
    """Seconds of the second step: the first one warms caches."""
    constants = jax.tree.map(
        lambda x: (
            jax.device_put(np.zeros(x.shape, x.dtype), sharding.replicated(trainer.mesh))
            if isinstance(x, jax.ShapeDtypeStruct)
            else x
        ),
        trainer.constants,
    )
    state, seconds = trainer.create(), 0.0
    for _ in range(2):
        placed = trainer.put(batch)
        begin = time.monotonic()
        with sharding.use(trainer.mesh):
            state, metrics = compiled(state, placed, trainer.schedule, constants)
        jax.block_until_ready((state, metrics))
        seconds = time.monotonic() - begin
    return seconds


def read(trainer: Trainer, compiled: Any, compile_s: float) -> Cost:
    """What a trainer's compiled step costs."""
    memory = compiled.memory_analysis()
    moved, largest = collectives(compiled.as_text())
    state = trainer.abstract
    moments = [state.opt_state] + ([] if state.ema is None else [state.ema])
    return Cost(
        mesh=dict(trainer.mesh.shape),
        params=local_bytes(state.params) + local_bytes(state.frozen),
        optimiser=local_bytes(moments),
        temporary=memory.temp_size_in_bytes,
        arguments=memory.argument_size_in_bytes,
        flops=trainer.task.flops_per_step,
        collectives=moved,
        largest=largest,
        compile_s=compile_s,
    )


def local_bytes(tree: Any) -> int:
    """Bytes of a tree of sharded shapes on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        n = leaf.dtype.itemsize
        for d in shape:
            n *= d
        total += n
    return total


def collectives(text: str) -> tuple[dict[str, tuple[int, int]], int]:
    """Collective operations of a compiled program's text.

    A loop's body is counted as often as the loop runs where the compiler knows that number
    (`known_trip_count`), else once.

    Returns:
        {kind: (count, bytes of the results)} of one device, and the bytes of the largest single
        one.
    """
    bodies = _computations(text)
    found: dict[str, list[int]] = {}
    largest = 0

    def visit(name: str, times: int, seen: tuple[str, ...]) -> None:
        nonlocal largest
        if name in seen or name not in bodies:
            return
        for line in bodies[name]:
            kind = _collective(line)
            if kind:
                size = _result_bytes(line, kind)
                entry = found.setdefault(kind, [0, 0])
                entry[0] += times
                entry[1] += times * size
                largest = max(largest, size)
            trip = re.search(r'known_trip_count[^0-9]*?"?n"?[^0-9]*?(\d+)', line)
            inner = times * (int(trip[1]) if trip and " while(" in line else 1)
            for called in re.findall(r"(?:body|calls|to_apply|condition)=%?([\w.\-]+)", line):
                if kind is None:
                    visit(called, inner, (*seen, name))
            for group in re.findall(r"branch_computations=\{([^}]*)\}", line):
                for called in re.findall(r"%?([\w.\-]+)", group):
                    visit(called, inner, (*seen, name))

    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)
    if entry:
        visit(entry[1], 1, ())
    return {k: (n, b) for k, (n, b) in found.items()}, largest


def _computations(text: str) -> dict[str, list[str]]:
    bodies: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        head = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = bodies.setdefault(head[1], [])
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return bodies


def _collective(line: str) -> str | None:
    for kind in COLLECTIVES:
        if re.search(rf" {kind}(-start)?\(", line):
            return kind
    return None


def _result_bytes(line: str, kind: str) -> int:
    """Bytes of what a collective leaves, of all arrays that it serves at once."""
    result = line.split(f" {kind}", 1)[0].split("=", 1)[-1].strip()
    # An asynchronous start is the pair of its operands and its results, each a tuple where the
    # compiler merged several collectives; an all-reduce has its results alone.
    if f" {kind}-start(" in line and kind != "all-reduce":
        parts = _top_level(result)
        result = parts[1] if len(parts) > 1 else result
    total = 0
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", result):
        n = _BYTES.get(dtype, 0)
        for d in filter(None, dims.split(",")):
            n *= int(d)
        total += n
    return total


def _top_level(shape: str) -> list[str]:
    """The elements of a tuple's shape; commas of inner tuples, dimensions and layouts stay."""
    parts, depth = [""], 0
    for letter in shape.removeprefix("(").removesuffix(")"):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
