"""A network on a mesh: what to initialise, where it lives, the compiled step, restoring, running.

A stage describes its task; this places it on the devices and hands it to the loop. Order of
restoring, as in big_vision: 1 the run's own newest sound checkpoint, 2 the weights of `init_from`,
3 random weights.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mouselift_jax.errors import CheckpointError
from mouselift_jax.runs.progress import Progress
from mouselift_jax.runs.rows import MetricWriter
from mouselift_jax.training import checkpoint, loop, lora, optim, sharding
from mouselift_jax.training import state as states
from mouselift_jax.training.checkpoint import Checkpoints
from mouselift_jax.training.settings import LoraSettings, TrainSettings


@dataclasses.dataclass
class Task:
    """What is trained.

    Attributes:
        init: `init(key) -> weights`, a nested dict, with axis names (boxed) or without.
        loss: `loss(params, batch, rng=, step=) -> (scalar, metrics)`.
        batch: ShapeDtypeStructs of one whole batch.
        constants: weights the loss needs and nothing trains (perceptual networks, a frozen
            encoder); given to `loss` as `constants=` when there are any, so that they are arguments
            of the program and not part of it.
        flops_per_step: useful ones of all devices together, forward and backward; what the
            backward pass recomputes is not counted; 0 = unknown.
    """

    init: Callable[[jax.Array], Any]
    loss: states.Loss
    batch: Any
    constants: Any = None
    flops_per_step: float = 0.0


class Trainer:
    """A task placed on the devices.

    Args:
        task: what is trained.
        config: the section `train`.
        seed: of weights and of every random choice of the steps.
        low_rank: the section `lora`; with a rank above 0 only low-rank additions are trained, and
            the weights that it names to be trained whole.
        devices: the devices, by default all.
    """

    def __init__(
        self,
        task: Task,
        config: TrainSettings,
        *,
        seed: int = 0,
        low_rank: LoraSettings | None = None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        # The section of a config will do too: scripts and tests hand it over as it is.
        config = TrainSettings.of(config)
        low_rank = None if low_rank is None else LoraSettings.of(low_rank)
        self._low_rank = low_rank if low_rank is not None and low_rank.rank > 0 else None
        self._add = lambda params: params
        if self._low_rank is not None:
            self._add = functools.partial(
                lora.add,
                rng=jax.random.key(seed + 1),
                rank=low_rank.rank,
                alpha=low_rank.alpha,
                patterns=tuple(low_rank.targets),
            )
            init, loss = task.init, task.loss
            task = dataclasses.replace(
                task,
                init=lambda key: self._add(init(key)),
                loss=lambda params, *args, **kw: loss(lora.fold(params), *args, **kw),
            )
        self.task, self.config, self.seed = task, config, seed
        self.mesh = sharding.make_mesh(dataclasses.asdict(config.mesh), devices)
        sharding.check_batch(config.batch_size, config.accum_steps, self.mesh)
        # On shapes alone: the devices of a plan may not be there.
        key = jax.eval_shape(lambda: jax.random.key(0))
        with sharding.use(self.mesh):
            boxed = jax.eval_shape(task.init, key)
        shapes = nn.meta.unbox(boxed)
        places = sharding.param_shardings(boxed, self.mesh)
        trained = self._chooser(shapes)
        self.shapes, frozen_shapes = states.split(shapes, trained)
        self.places, frozen_places = states.split(places, trained)
        self.tx, self.guard = optim.make(config.optim, config.steps, self.shapes)
        self.schedule = optim.schedule(config.optim, config.steps)
        make = functools.partial(states.create, tx=self.tx, ema=config.ema_decay > 0)
        self.abstract = jax.eval_shape(lambda p, f: make(p, frozen=f), self.shapes, frozen_shapes)
        self.state_places = states.shardings(self.abstract, self.mesh, self.places, frozen_places)
        self.abstract = checkpoint.abstract_like(self.abstract, self.state_places)
        self._trained = trained
        self._make = make
        self._one = sharding.replicated(self.mesh)
        self.constants = task.constants
        if task.constants is not None and not _is_abstract(task.constants):
            self.constants = jax.device_put(task.constants, self._one)
        self._step = self._jit_step()

    def _chooser(self, shapes: Any) -> Callable[[tuple[str, ...]], bool]:
        paths = [optim.path_of(k) for k, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        patterns = [str(p) for p in self.config.optim.freeze]
        optim.match_all(patterns, paths, "train.optim.freeze")
        low = self._low_rank
        whole = () if low is None else tuple(str(p) for p in low.whole)
        optim.match_all(whole, paths, "lora.whole")

        def trained(path: tuple[str, ...]) -> bool:
            if low is not None and not lora.is_trained(path, whole):
                return False
            return not any(re.search(p, "/".join(path)) for p in patterns)

        return trained

    def _jit_step(self) -> Any:
        config, task = self.config, self.task

        def step(state: states.TrainState, batch: Any, schedule: Any, constants: Any) -> Any:
            loss = task.loss
            if constants is not None:
                loss = functools.partial(task.loss, constants=constants)
            one = states.make_step(
                loss,
                self.tx,
                dataclasses.replace(self.guard, lr=optim.warmup_cosine(**schedule)),
                seed=self.seed,
                accum_steps=config.accum_steps,
                ema_decay=config.ema_decay,
                ema_warmup=config.ema_warmup,
            )
            return one(state, batch)

        batch_places = sharding.batch_sharding(self.mesh)
        places = (self.state_places, batch_places, self._one, self._one)
        return jax.jit(
            step,
            in_shardings=places,
            out_shardings=(self.state_places, self._one),
            donate_argnums=0,
        )

    def step(self, state: states.TrainState, batch: Any) -> tuple[states.TrainState, Mapping]:
        """One update; the buffers of `state` are reused."""
        if isinstance(self.schedule["peak"], np.ndarray):  # placed once, not at every step
            self.schedule = jax.device_put(self.schedule, self._one)
        with sharding.use(self.mesh):
            return self._step(state, batch, self.schedule, self.constants)

    def lower(self, platforms: tuple[str, ...] | None = None) -> Any:
        """The step on shapes alone, lowered and not yet compiled; by default for its devices."""
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding.batch_sharding(self.mesh)
            ),
            self.task.batch,
        )
        schedule, constants = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._one),
            (self.schedule, self.constants),
        )
        with sharding.use(self.mesh):
            traced = self._step.trace(self.abstract, batch, schedule, constants)
            return traced.lower(lowering_platforms=platforms)

    def create(self, initial: Any = None) -> states.TrainState:
        """The state at step 0, from random weights or from `initial` (a tree of numpy arrays)."""

        def place(params: Any) -> states.TrainState:
            trained, frozen = states.split(params, self._trained)
            return self._make(trained, frozen=frozen)

        with sharding.use(self.mesh):
            if initial is None:
                key = jax.random.key(self.seed)
                return jax.jit(
                    lambda: place(nn.meta.unbox(self.task.init(key))),
                    out_shardings=self.state_places,
                )()
            if self._low_rank is not None:
                initial = jax.device_get(jax.jit(self._add)(initial))
            check_same_tree(initial, states.merge(self.shapes, self.abstract.frozen))
            places = states.merge(self.places, self.state_places.frozen)
            put = jax.tree.map(
                lambda x, s, p: jax.make_array_from_callback(
                    s.shape, p, lambda index, x=x, s=s: np.asarray(x[index], s.dtype)
                ),
                initial,
                states.merge(self.shapes, self.abstract.frozen),
                places,
            )
            return jax.jit(place, out_shardings=self.state_places)(put)

    def restore(self, checkpoints: Checkpoints) -> states.TrainState | None:
        """The newest sound state of this run; None when it has none."""
        found = checkpoints.restore(checkpoint.state_items(self.abstract))
        if found is None:
            return None
        template = self.abstract.replace(frozen={})
        return checkpoint.state_from_items(template, found[1])

    def put(self, batch: Any) -> Any:
        """This process's rows as arrays of the mesh."""
        return sharding.put_batch(batch, self.mesh)

    @property
    def rows(self) -> tuple[int, int]:
        """(i, n): this process reads part i of n of every batch."""
        return sharding.local_rows(self.mesh)

    def fit(
        self,
        folder: Path,
        batches: Callable[[int], Iterator[Any]],
        *,
        initial: Callable[[], Any] | None = None,
        hooks: loop.Hooks | None = None,
        style: str = "auto",
        profile: str | None = None,
        primary: bool = True,
    ) -> tuple[states.TrainState, dict[str, float]]:
        """Train to the last step, resuming what `folder` holds.

        Args:
            folder: of the run.
            batches: `batches(step)` yields this process's rows of the batches from that step on.
            initial: reads the weights to start from; called only when nothing is resumed.
            hooks: what the stage adds to the loop.
            style: of the progress.
            profile: "A:B" or None.
            primary: whether this process writes metrics.

        Returns:
            The last state and the last value of every metric.
        """
        config = self.config
        hooks = hooks or loop.Hooks()
        hooks.flops_per_step = hooks.flops_per_step or self.task.flops_per_step
        place = folder / "checkpoints"
        with Checkpoints(place, keep=config.keep, best=config.keep_best) as checkpoints:
            state = self.restore(checkpoints)
            if state is None:
                state = self.create(None if initial is None else initial())
            else:
                loop.log.info("resuming at step %d of %d", int(state.step), config.steps)
            done = int(state.step)
            schedule = loop.Schedule(
                total=config.steps,
                log_every=config.log_every,
                eval_every=config.eval_every,
                picture_every=config.picture_every,
                save_every=config.save_every,
                log_minutes=config.log_minutes,
                eval_minutes=config.eval_minutes,
                save_minutes=config.save_minutes,
            )
            with (
                MetricWriter(
                    folder, resume_step=done, primary=primary, wandb=config.wandb
                ) as writer,
                Progress(config.steps, done=done, style=style if primary else "none") as progress,
            ):
                if done < config.steps:
                    for name, text in hooks.texts.items():
                        writer.text(done, name, text)
                    loop.log.info(
                        "compiling the step; should XLA write `Very slow compile?` or `Constant "
                        "folding ...`, it is about waiting: no bug, nothing to file"
                    )
                    state = loop.train(
                        state,
                        self.step,
                        map(self.put, batches(done)),
                        schedule,
                        writer=writer,
                        checkpoints=checkpoints,
                        progress=progress,
                        hooks=hooks,
                        profile=loop.profile_range(profile, folder / "profile"),
                    )
                return state, dict(writer.last)


def _is_abstract(tree: Any) -> bool:
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))


def check_same_tree(given: Any, wanted: Any) -> None:
    """Weights to start from must be those of this network, leaf by leaf."""
    have = {optim.path_of(k): tuple(v.shape) for k, v in jax.tree_util.tree_leaves_with_path(given)}
    need = {
        optim.path_of(k): tuple(v.shape) for k, v in jax.tree_util.tree_leaves_with_path(wanted)
    }
    different = [
        f"{key}: {have.get(key, 'absent')}, expected {need.get(key, 'nothing of this name')}"
        for key in sorted(have.keys() | need.keys())
        if have.get(key) != need.get(key)
    ]
    if different:
        raise CheckpointError(
            "the weights are of another network",
            where="config.init_from",
            found="; ".join(different[:3])
            + (f" and {len(different) - 3} more" if len(different) > 3 else ""),
            fix="set config.model to the network they come from",
        )
