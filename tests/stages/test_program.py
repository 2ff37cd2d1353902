import functools

import jax
import jax.numpy as jnp
import pytest

from mouselift_jax.models import gslrm
from mouselift_jax.models.gslrm import GSLRM, GSLRMConfig, forward_flops
from mouselift_jax.stages.harness import cost
from mouselift_jax.training.trainer import Trainer
from tests.training import toy_run

LOOP = 'condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"24"}}'
TEXT = """
HloModule m

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %ag = f32[16,8]{1,0} all-gather(%x), dimensions={0}
  %cp = (f32[4,8], f32[4,8]) collective-permute-start(%x)
}

%cond (p: (s32[], f32[4,8])) -> pred[] {
  %c = pred[] compare(%a, %b)
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %w = (s32[], f32[4,8]) while(%t), LOOP
  %ar = bf16[100]{0} all-reduce(%g), to_apply=%add
}
""".replace("LOOP", LOOP)


def test_collectives_of_loops_are_counted_as_often_as_the_loop_runs():
    found, largest = cost.collectives(TEXT)
    assert found["all-gather"] == (24, 24 * 16 * 8 * 4)
    assert found["collective-permute"] == (24, 24 * 4 * 8 * 4)
    assert found["all-reduce"] == (1, 200)
    assert largest == 16 * 8 * 4


def test_collectives_merged_into_one_start_are_all_counted():
    """As XLA writes them for GPUs: a tuple of operands, then a tuple of results."""
    start = """
ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %ag = ((f32[4,8]{1,0}, bf16[2]{0}), (f32[16,8]{1,0}, bf16[8]{0})) all-gather-start(%x, %y), dim
  %one = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}
  %rs = ((f32[16,8]{1,0}, f32[8]{0}), (f32[4,8]{1,0}, f32[2]{0})) reduce-scatter-start(%x, %y)
  %ar = (f32[100]{0:T(8)}, f32[10]{0}) all-reduce-start(%g, %h), to_apply=%add
  %cp = (f32[4,8], f32[4,8], u32[], u32[]) collective-permute-start(%x)
}
"""
    found, largest = cost.collectives(start)
    assert found["all-gather"] == (2, 16 * 8 * 4 + 8 * 2 + 16 * 4)
    assert found["reduce-scatter"] == (1, (4 * 8 + 2) * 4)
    assert found["all-reduce"] == (1, 110 * 4)
    assert found["collective-permute"] == (1, 4 * 8 * 4)
    assert largest == 16 * 8 * 4 + 8 * 2


def test_cost_of_the_toy_on_two_devices():
    config = toy_run.config(3, **{"mesh.data": 2, "accum_steps": 1})
    trainer = Trainer(toy_run.task(), config, devices=jax.devices()[:2])
    made = cost.cost(trainer)
    weights = sum(x.size * 4 for x in jax.tree.leaves(trainer.shapes))
    assert made.params == weights and 3 * weights <= made.optimiser <= 3 * weights + 64
    # Gradients of data-parallel copies are summed once: as many bytes as the weights, and no more.
    moved = sum(b for _, b in made.collectives.values())
    assert weights <= moved <= 1.1 * weights + 1024
    assert made.largest <= weights + 64  # with the loss beside them
    assert "all-reduce" in made.describe() and "activations" in made.describe()


def test_hours_come_from_a_step_that_was_run_where_it_can_be(monkeypatch):
    config = toy_run.config(30_000, **{"mesh.data": 2, "accum_steps": 1})
    trainer = Trainer(toy_run.task(), config, devices=jax.devices()[:2])
    made = cost.cost(trainer, lambda: next(toy_run.batches(0)))
    assert 0 < made.step_s < 5 and "for 30000 steps, without evaluations" in made.describe()
    assert "time" not in cost.cost(trainer).describe()
    monkeypatch.setattr(cost, "CPU_FLOPS", -1.0)
    told = cost.cost(trainer, pytest.fail).describe()  # no batch is even read
    assert "not measured: 0.0e+00 FLOPs a step are minutes on processors" in told


@pytest.mark.parametrize("views, side", [(2, 32), (3, 48)])
def test_arithmetic_flops_against_an_unrolled_compile(monkeypatch, views, side):
    """The count that plans and utilisation use, against XLA's own count of two layers.

    XLA counts a loop's body once, so the loop over layers is unrolled for it.
    """
    monkeypatch.setattr(gslrm.nn, "scan", functools.partial(gslrm.nn.scan, unroll=2))
    config = GSLRMConfig(width=128, head_dim=32, n_layers=2, remat="none", attention="xla")
    images = jnp.zeros((1, views, side, side, 3))
    K = jnp.broadcast_to(jnp.eye(3), (1, views, 3, 3))
    c2w = jnp.broadcast_to(jnp.eye(4), (1, views, 4, 4))
    model = GSLRM(config)
    params = jax.eval_shape(model.init, jax.random.key(0), images, K, c2w)

    def loss(params):
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(model.apply(params, *inputs)))

    inputs = (images, K, c2w)
    forward = forward_flops(config, views, side, side)
    # XLA also counts norms, softmax and rays, a few operations for each element; the backward pass
    # leaves out the gradient of the pictures.
    for f, counted in ((loss, forward), (jax.grad(loss), 3 * forward)):
        compiled = jax.jit(f).lower(params).compile()
        assert " while(" not in compiled.as_text()
        assert 0.98 <= compiled.cost_analysis()["flops"] / counted <= 1.15
