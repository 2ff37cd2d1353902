"""Time and memory of every attention backend that runs here, beside torch's.

    python -m tests.benchmarks.bench_attention [--tokens 1024,4096] [--heads 16] [--dtype bfloat16]
        [--repeat 3] [--out FILE]

Forward and forward + backward, one sample, head size 64. Backends take turns, so that a busy
machine slows all of them alike; the figure is the least of the repeats, in wall and in processor
time. Memory is what the compiled program reports beyond its arguments. On a GPU use
--tokens 4096,24576.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mouselift_jax.models.attention import BACKENDS, attention, unavailable
from tests.benchmarks import report

HEAD_DIM = 64
SCORES_LIMIT = 8 * 2**30  # bytes of scores above which `xla` is left out


def jax_program(name: str, shape: tuple[int, ...], dtype: str, backward: bool) -> dict:
    """A compiled program, its arguments and its temporary memory."""

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, implementation=name)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return forward(q, k, v).astype(jnp.float32).sum()

    f = jax.grad(loss, argnums=(0, 1, 2)) if backward else forward
    keys = jax.random.split(jax.random.key(0), 3)
    args = [jax.random.normal(key, shape, jnp.dtype(dtype)) for key in keys]
    compiled = jax.jit(f).lower(*args).compile()
    temp = compiled.memory_analysis().temp_size_in_bytes
    return {"run": lambda: jax.block_until_ready(compiled(*args)), "temp_mib": temp / 2**20}


def torch_program(shape: tuple[int, ...], dtype: str, backward: bool) -> dict | None:
    """The same with torch's scaled_dot_product_attention; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    b, t, h, d = shape
    make = functools.partial(torch.randn, (b, h, t, d), device=device, requires_grad=backward)
    args = [make(dtype=getattr(torch, dtype)) for _ in range(3)]

    def run() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(*args)
        if backward:
            torch.autograd.grad(out.float().sum(), args)
        if device == "cuda":
            torch.cuda.synchronize()

    return {"run": run, "temp_mib": None}


def least(programs: dict[str, dict], repeat: int) -> None:
    """Add the least wall and processor time of alternating runs to every program."""
    for program in programs.values():
        program["run"]()
        program |= {"wall_ms": np.inf, "cpu_ms": np.inf}
    for _ in range(repeat):
        for program in programs.values():
            wall, cpu = time.perf_counter(), time.process_time()
            program["run"]()
            program["wall_ms"] = min(program["wall_ms"], 1e3 * (time.perf_counter() - wall))
            program["cpu_ms"] = min(program["cpu_ms"], 1e3 * (time.process_time() - cpu))


def rows(tokens: int, heads: int, dtype: str, repeat: int) -> list[dict]:
    """One row a backend and direction."""
    shape, out = (1, tokens, heads, HEAD_DIM), []
    names = [n for n in BACKENDS if n != "splash_interpret"]
    x = jax.ShapeDtypeStruct(shape, dtype)
    names = [n for n in names if unavailable(n, x, x) is None]
    if heads * tokens**2 * 4 > SCORES_LIMIT:
        names.remove("xla")
    for backward in (False, True):
        makers: dict[str, Callable] = {
            n: functools.partial(jax_program, n, shape, dtype, backward) for n in names
        }
        makers["torch"] = functools.partial(torch_program, shape, dtype, backward)
        programs = {n: p for n, make in makers.items() if (p := make()) is not None}
        least(programs, repeat)
        flops = 4.0 * heads * tokens**2 * HEAD_DIM * (3.5 if backward else 1.0)
        for name, p in programs.items():
            out.append(
                {"tokens": tokens, "heads": heads, "dtype": dtype, "backend": name,
                 "backward": backward, "wall_ms": round(p["wall_ms"], 2),
                 "cpu_ms": round(p["cpu_ms"], 2), "temp_mib": p["temp_mib"],
                 "tflop_per_s": flops / p["wall_ms"] / 1e9}
            )  # fmt: skip
    return out


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="1024,4096")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    found: list[dict] = []
    for tokens in map(int, a.tokens.split(",")):
        for dtype in a.dtypes.split(","):
            found += rows(tokens, a.heads, dtype, a.repeat)
    report.write("attention", {"": found}, a.out)


if __name__ == "__main__":
    main()
