"""The state of a run and the one training step.

Everything a run needs to go on exactly is in `TrainState`: random numbers derive from (seed, step)
and so does the position in the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mouselift_jax.training import lora, optim, sharding

Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@flax.struct.dataclass
class TrainState:
    """A pytree, saved whole.

    Attributes:
        step: updates asked for so far, skipped ones included; also the position in the data.
        params: the weights that are trained.
        frozen: the weights that are not; {} when all are trained.
        opt_state: of the optimiser.
        ema: moving average of `params`, None when there is none.
        skipped: updates left out because the gradient was too large.
        halted: whether a loss or gradient was not finite; nothing moves after that.
    """

    step: jax.Array
    params: Any
    frozen: Any
    opt_state: Any
    ema: Any
    skipped: jax.Array
    halted: jax.Array


def create(
    params: Any, tx: optax.GradientTransformation, *, frozen: Any = None, ema: bool
) -> TrainState:
    """The state at step 0; usable under jit and eval_shape."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen={} if frozen is None else frozen,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        skipped=jnp.zeros((), jnp.int32),
        halted=jnp.zeros((), jnp.bool_),
    )


def shardings(
    state: TrainState, mesh: Mesh, param_shardings: Any, frozen_shardings: Any
) -> TrainState:
    """Where each leaf of a state (real or abstract) goes."""
    one = sharding.replicated(mesh)
    return TrainState(
        step=one,
        params=param_shardings,
        frozen=frozen_shardings,
        opt_state=sharding.like_params(state.opt_state, state.params, param_shardings, mesh),
        ema=None if state.ema is None else param_shardings,
        skipped=one,
        halted=one,
    )


def merge(params: Any, frozen: Any) -> Any:
    """One tree of weights from the trained and the frozen ones."""
    if not isinstance(params, dict) or not isinstance(frozen, dict):
        return params
    merged = dict(frozen)
    for key, value in params.items():
        merged[key] = merge(value, frozen[key]) if key in frozen else value
    return merged


def split(params: Any, is_trained: Callable[[tuple[str, ...]], bool]) -> tuple[Any, Any]:
    """(trained, frozen): two trees of which `merge` makes the original."""

    def pick(tree: Any, want: bool, path: tuple[str, ...]) -> Any:
        out = {}
        for key, value in tree.items():
            here = (*path, key)
            if isinstance(value, dict):
                below = pick(value, want, here)
                if below:
                    out[key] = below
            elif is_trained(here) == want:
                out[key] = value
        return out

    return pick(params, True, ()), pick(params, False, ())


def make_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    guard: optim.Guard,
    *,
    seed: int = 0,
    accum_steps: int = 1,
    ema_decay: float = 0.0,
    ema_warmup: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """The training step, to be jitted with its state donated.

    Args:
        loss: `loss(params, batch, rng=, step=) -> (scalar, metrics)`, params trained and frozen
            together.
        tx: turns gradients into updates for a learning rate of 1 (see `optim.make`).
        guard: clipping, skipping and the learning rate.
        seed: of the run.
        accum_steps: micro-batches the batch is split into; gradients are averaged in float32.
        ema_decay: of the moving average; 0 = none.
        ema_warmup: the decay grows with the number of updates, see `ema_rate`.

    Returns:
        `step(state, batch) -> (state, metrics)`; metrics are float32 scalars named "train/...".
    """

    def value_and_grad(
        params: Any, frozen: Any, batch: Any, rng: jax.Array, step: jax.Array
    ) -> Any:
        def wanted(trained: Any) -> Any:
            return loss(merge(trained, frozen), batch, rng=rng, step=step)

        return jax.value_and_grad(wanted, has_aux=True)(params)

    def mean_grads(state: TrainState, batch: Any, rng: jax.Array) -> Any:
        if accum_steps == 1:
            return value_and_grad(state.params, state.frozen, batch, rng, state.step)
        # Row r goes to micro-batch r % accum_steps, so every device keeps its own rows.
        micro = jax.tree.map(
            lambda x: x.reshape(x.shape[0] // accum_steps, accum_steps, *x.shape[1:]).swapaxes(
                0, 1
            ),
            batch,
        )

        def body(total: Any, item: Any) -> tuple[Any, None]:
            rows, index = item
            one = value_and_grad(
                state.params, state.frozen, rows, jax.random.fold_in(rng, index), state.step
            )
            return jax.tree.map(lambda t, o: t + o.astype(t.dtype), total, one), None

        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(value_and_grad, state.params, state.frozen, first, rng, state.step)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
        total, _ = jax.lax.scan(body, zero, (micro, jnp.arange(accum_steps)))
        return jax.tree.map(lambda x: x / accum_steps, total)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, metrics), grads = mean_grads(state, batch, rng)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        go = finite & ~state.halted
        apply = go & ~guard.too_large(norm)
        lr = guard.lr(state.step)
        updates, opt_state = tx.update(guard.clip(grads, norm), state.opt_state, state.params)
        moved = jax.tree.map(lambda p, u: p - (lr * u).astype(p.dtype), state.params, updates)

        def choose(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(apply, n, o), new, old)

        params = choose(moved, state.params)
        ema = state.ema
        if ema is not None:
            rate = ema_rate(state.step + 1, ema_decay) if ema_warmup else ema_decay
            ema = jax.tree.map(
                lambda e, p: jnp.where(apply, e * rate + p * (1 - rate), e), ema, params
            )
        new = state.replace(
            step=state.step + go.astype(jnp.int32),
            params=params,
            opt_state=choose(opt_state, state.opt_state),
            ema=ema,
            skipped=state.skipped + (go & ~apply).astype(jnp.int32),
            halted=state.halted | ~finite,
        )
        report = {f"train/{k}": v for k, v in metrics.items()} | {
            "train/loss": value,
            "train/grad_norm": norm,
            "train/lr": lr,
            "train/skipped": new.skipped,
            "train/finite": finite,
        }
        return new, {k: jnp.asarray(v, jnp.float32) for k, v in report.items()}

    return step


def ema_rate(k: Any, cap: float) -> jax.Array:
    """Decay of the k-th update of a moving average that starts fresh: k / (k + 9), at most `cap`.

    The first update copies the weights. Source: diffusers' EMAModel with its defaults.
    """
    k = jnp.asarray(k, jnp.float32)
    return jnp.where(k <= 1, 0.0, jnp.minimum(k / (k + 9), cap))


def eval_params(state: TrainState) -> Any:
    """The weights to evaluate and to release: the average if there is one, LoRA folded in."""
    return lora.fold(merge(state.params if state.ema is None else state.ema, state.frozen))
