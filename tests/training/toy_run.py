"""A run so small that it can be repeated many times: two dense layers on random numbers.

Also a program: `python -m tests.training.toy_run DIR [--steps N] [--mesh D,F,T,S] [...]` trains
in DIR, resuming what is there, and writes DIR/result.json = losses, checksum of the whole state.
Tests start it as a process of its own to kill it, to give it other devices, or to join it with
others.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


def config(steps: int, **changes):
    """The section `train` of a run of the toy."""
    from configs import common

    c = common.training()
    c.steps, c.batch_size, c.accum_steps, c.ema_decay = steps, 8, 2, 0.9
    c.log_every, c.save_every, c.eval_every = 1, 5, 0
    c.optim.lr, c.optim.warmup_steps = 1e-2, 5
    for key, value in changes.items():
        c.update_from_flattened_dict({key: value})
    return c


def task(width: int = 16):
    """Regression with a weight large enough to be sharded, in names the rules know."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from mouselift_jax.training.trainer import Task

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            part = nn.with_logical_partitioning
            normal = nn.initializers.normal(0.2)
            x = nn.Dense(4 * width, kernel_init=part(normal, ("embed", "mlp")), name="up")(x)
            x = nn.with_logical_constraint(jnp.tanh(x), ("batch", "tokens", "mlp"))
            return nn.Dense(4, kernel_init=part(normal, ("mlp", "embed")), name="down")(x)

    net = Net()

    def loss(params, batch, *, rng, step):
        noise = 0.01 * jax.random.normal(rng, batch["y"].shape)
        error = jnp.mean((net.apply({"params": params}, batch["x"]) - batch["y"] + noise) ** 2)
        return error, {"l2": error}

    shapes = {
        "x": jax.ShapeDtypeStruct((8, 6, width), jnp.float32),
        "y": jax.ShapeDtypeStruct((8, 6, 4), jnp.float32),
    }
    return Task(lambda key: net.init(key, jnp.zeros((1, 6, width)))["params"], loss, shapes)


def batches(step: int, rows: tuple[int, int] = (0, 1), width: int = 16, wait_s: float = 0.0):
    """Batches that are a function of the step; `rows` = (i, n) takes part i of n."""
    import time

    while True:
        rng = np.random.default_rng((7, step))
        x = rng.normal(size=(8, 6, width)).astype(np.float32)
        y = np.sin(x[..., :4] * 2).astype(np.float32)
        n = 8 // rows[1]
        part = slice(rows[0] * n, (rows[0] + 1) * n)
        time.sleep(wait_s)
        yield {"x": x[part], "y": y[part]}
        step += 1


def run(folder: Path, steps: int = 20, *, wait_s: float = 0.0, loss=None, **changes):
    """Train; returns the trainer, the state and the metrics."""
    import functools

    from mouselift_jax.training.trainer import Trainer

    what = task()
    if loss is not None:
        what.loss = loss
    trainer = Trainer(what, config(steps, **changes))
    feed = functools.partial(batches, rows=trainer.rows, wait_s=wait_s)
    import jax

    state, metrics = trainer.fit(Path(folder), feed, style="none", primary=jax.process_index() == 0)
    return trainer, state, metrics


def draws(folder: Path, samples: str, steps: int = 3, **changes):
    """The draws of mvdiff over a sample set: rows of metrics that tell which sample got which.

    Args:
        folder: of the run.
        samples: a sample set.
        steps: updates, of four samples each.
        changes: of the section `train`.
    """
    from types import SimpleNamespace

    import jax
    import jax.numpy as jnp

    from mouselift_jax.data.batches.loader import make_loader
    from mouselift_jax.pipelines.views_training import draw_training
    from mouselift_jax.runs.rows import read_rows
    from mouselift_jax.training.trainer import Task, Trainer

    networks = SimpleNamespace(image_normalizer=SimpleNamespace(embedding_dim=3))

    def loss(params, batch, *, rng, step):
        drawn = draw_training(rng, networks, (4, 1, 2, 2, 4), 1000)
        number = 1.0 + batch  # of the sample
        told = {"timesteps": jnp.sum(number * drawn.timesteps)}
        told["noise"] = jnp.sum(number * drawn.latent_noise.sum((1, 2, 3, 4)))
        return jnp.sum(params["w"] ** 2), told

    batch = jax.ShapeDtypeStruct((4,), jnp.int32)
    task = Task(lambda key: {"w": jnp.ones((2,))}, loss, batch)
    section = config(steps, batch_size=4, accum_steps=1, ema_decay=0.0, **changes)
    trainer = Trainer(task, section)

    def feed(step):
        loader = make_loader(samples, "all", batch_size=4, start_step=step, shard=trainer.rows)
        return (b.sample_index for b in loader)

    trainer.fit(folder, feed, style="none", primary=jax.process_index() == 0)
    return (
        [[r["train/timesteps"], r["train/noise"]] for r in read_rows(folder / "metrics.jsonl")]
        if jax.process_index() == 0
        else []
    )


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mesh", default="-1,1,1,1")
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--wait-s", type=float, default=0.0)
    parser.add_argument("--draws", help="a sample set: what mvdiff draws for its samples")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process-id", type=int)
    a = parser.parse_args()
    import jax

    from mouselift_jax.runs.rows import read_rows
    from mouselift_jax.training import distributed
    from mouselift_jax.training.checkpoint import checksum, state_items
    from mouselift_jax.training.preempt import StopRequested

    distributed.initialise(a.coordinator, a.processes, a.process_id)
    sizes = dict(
        zip(("data", "fsdp", "tensor", "sequence"), map(int, a.mesh.split(",")), strict=True)
    )
    changes = {f"mesh.{k}": v for k, v in sizes.items()} | {"save_every": a.save_every}
    a.folder.mkdir(parents=True, exist_ok=True)
    try:
        if a.draws:
            found = draws(a.folder, a.draws, **{f"mesh.{k}": v for k, v in sizes.items()})
            if jax.process_index() == 0:
                (a.folder / "result.json").write_text(json.dumps(found))
            return 0
        trainer, state, _ = run(a.folder, a.steps, wait_s=a.wait_s, **changes)
        with jax.set_mesh(trainer.mesh):
            total = int(checksum(state_items(state)))
        if jax.process_index() == 0:
            rows = read_rows(a.folder / "metrics.jsonl")
            result = {"losses": [r["train/loss"] for r in rows], "checksum": total}
            result["norms"] = [r["train/grad_norm"] for r in rows]
            (a.folder / "result.json").write_text(json.dumps(result))
        return 0
    except StopRequested as stop:
        return stop.code
    finally:
        distributed.shutdown()


if __name__ == "__main__":
    sys.exit(main())
