import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mouselift_jax.errors import ConfigError
from mouselift_jax.training import optim, state


def section(**changes):
    c = common.optimiser()
    for key, value in changes.items():
        c[key] = value
    return c


def params():
    key = jax.random.key(0)
    return {
        "layers": {"norm": {"scale": jnp.ones((3, 4))}, "fc": {"kernel": jnp.ones((3, 4, 4))}},
        "head": {"kernel": jax.random.normal(key, (4, 2)), "bias": jnp.zeros(2)},
    }


def test_decay_is_on_matrices_only_also_when_stacked():
    assert optim.decays("layers/fc/kernel", 3)
    assert optim.decays("gaussian_position_embeddings", 2)
    assert not optim.decays("layers/norm/scale", 2)  # a gain of every stacked layer
    assert not optim.decays("head/bias", 1)
    # What the optimiser does without a gradient is decay alone.
    ones = {"layers": {"fc": {"kernel": jnp.ones((2, 3, 3))}, "norm": {"scale": jnp.ones((2, 3))}},
            "head": {"bias": jnp.ones(3)}}  # fmt: skip
    for everywhere in (False, True):
        tx, _ = optim.make(section(decay_all=everywhere), 10, ones)
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, ones), tx.init(ones), ones)
        moved = {optim.path_of(k): bool(v.any()) for k, v in jax.tree.leaves_with_path(updates)}
        assert moved == {
            "layers/fc/kernel": True,
            "layers/norm/scale": everywhere,
            "head/bias": everywhere,
        }


def test_adamw_agrees_with_torch():
    torch = pytest.importorskip("torch")
    p, c = params(), section(lr=1e-2, warmup_steps=3, clip_norm=0.0)
    tx, guard = optim.make(c, 12, p)
    named = [(optim.path_of(k), np.array(v)) for k, v in jax.tree_util.tree_leaves_with_path(p)]
    weights = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in named}
    groups = [
        {
            "params": [w for k, w in weights.items() if optim.decays(k, w.ndim)],
            "weight_decay": 0.05,
        },
        {
            "params": [w for k, w in weights.items() if not optim.decays(k, w.ndim)],
            "weight_decay": 0.0,
        },
    ]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    st = state.create(p, tx, ema=False)

    def loss(q, batch, *, rng, step):
        return sum(jnp.sum(jnp.sin(x + batch[0])) for x in jax.tree.leaves(q)), {}

    step = jax.jit(state.make_step(loss, tx, guard))
    for i in range(12):
        st, _ = step(st, jnp.full((1,), float(i)))
        for group in adam.param_groups:
            group["lr"] = float(guard.lr(jnp.int32(i)))
        adam.zero_grad()
        sum(torch.sin(w + float(i)).sum() for w in weights.values()).backward()
        adam.step()
    for k, v in jax.tree_util.tree_leaves_with_path(st.params):
        np.testing.assert_allclose(v, weights[optim.path_of(k)].detach(), atol=3e-6, rtol=1e-5)


def test_schedule():
    lr = optim.warmup_cosine(1.0, 10, 110)
    assert float(lr(0)) == 0.0 and float(lr(5)) == 0.5 and float(lr(10)) == 1.0
    np.testing.assert_allclose(float(lr(60)), 0.5, atol=1e-6)
    np.testing.assert_allclose(float(lr(110)), 0.0, atol=1e-6)
    assert float(optim.warmup_cosine(2.0, 0, 10, 0.1)(10)) == pytest.approx(0.2)


def quadratic(q, batch, *, rng, step):
    return jnp.mean(batch) * sum(jnp.sum(x**2) for x in jax.tree.leaves(q)), {}


def test_too_large_a_gradient_is_skipped_and_counted():
    p = params()
    tx, guard = optim.make(section(lr=1e-2, warmup_steps=0, skip_factor=20.0), 10, p)
    step = jax.jit(state.make_step(quadratic, tx, guard, ema_decay=0.5))
    st = state.create(p, tx, ema=True)
    big, report = step(st, jnp.full((2,), 1e4))
    assert int(big.skipped) == 1 and int(big.step) == 1 and float(report["train/grad_norm"]) > 20
    jax.tree.map(np.testing.assert_array_equal, big.params, p)
    jax.tree.map(np.testing.assert_array_equal, big.opt_state, st.opt_state)
    small, _ = step(big, jnp.full((2,), 1e-2))
    assert int(small.skipped) == 1 and int(small.step) == 2
    assert float(jnp.abs(small.params["head"]["kernel"] - p["head"]["kernel"]).max()) > 0


def test_clipping_keeps_the_direction():
    guard = optim.Guard(lambda s: s, clip_norm=1.0)
    g = {"a": jnp.array([3.0, 4.0])}
    np.testing.assert_allclose(guard.clip(g, jnp.float32(5.0))["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(guard.clip(g, jnp.float32(0.5))["a"], [3.0, 4.0], rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_not_finite_halts_for_good(poison):
    p = params()
    tx, guard = optim.make(section(), 10, p)
    step = jax.jit(state.make_step(quadratic, tx, guard))
    st, _ = step(state.create(p, tx, ema=False), jnp.full((2,), 0.1))
    bad, report = step(st, jnp.full((2,), poison))
    assert bool(bad.halted) and int(bad.step) == 1 and not bool(report["train/finite"])
    after, _ = step(bad, jnp.full((2,), 0.1))
    assert int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, st.params)


def test_accumulation_is_the_whole_batch():
    p = params()
    tx, guard = optim.make(section(lr=1e-2, warmup_steps=0), 10, p)

    def loss(q, batch, *, rng, step):
        error = batch @ q["head"]["kernel"] + q["head"]["bias"]
        return jnp.mean(error**2), {"l2": jnp.mean(error**2)}

    batch = jax.random.normal(jax.random.key(1), (8, 4))
    results = []
    for accum in (1, 2, 4):
        step = jax.jit(state.make_step(loss, tx, guard, accum_steps=accum))
        results.append(step(state.create(p, tx, ema=False), batch))
    for st, report in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            st.params,
            results[0][0].params,
        )
        assert float(report["train/l2"]) == pytest.approx(
            float(results[0][1]["train/l2"]), rel=1e-5
        )


def test_lr_by_path_and_wrong_patterns():
    p = params()
    tx, guard = optim.make(
        section(lr_scale=(("head", 0.0),), warmup_steps=0, weight_decay=0.0), 10, p
    )
    st, _ = jax.jit(state.make_step(quadratic, tx, guard))(
        state.create(p, tx, ema=False), jnp.ones((1,)) * 1e-3
    )
    np.testing.assert_array_equal(st.params["head"]["kernel"], p["head"]["kernel"])
    assert float(jnp.abs(st.params["layers"]["fc"]["kernel"] - 1).max()) > 0
    with pytest.raises(ConfigError, match="no weight has such a path"):
        optim.make(section(lr_scale=(("haed", 0.1),)), 10, p)
    with pytest.raises(ConfigError, match="not a regular expression"):
        optim.make(section(lr_scale=(("he(ad", 0.1),)), 10, p)
    with pytest.raises(ConfigError, match="second moment"):
        optim.make(section(second_moment="eight"), 10, p)


def test_factored_moments_are_small_and_learn():
    p = {"w": {"kernel": jax.random.normal(jax.random.key(0), (256, 512))}}
    tx, guard = optim.make(section(second_moment="factored", lr=1e-2, warmup_steps=0), 100, p)
    st = state.create(p, tx, ema=False)
    full, _ = optim.make(section(), 100, p)
    size = lambda t: sum(x.nbytes for x in jax.tree.leaves(t))  # noqa: E731
    assert size(st.opt_state) < 0.3 * size(full.init(p))
    step = jax.jit(state.make_step(quadratic, tx, guard))
    for _ in range(20):
        st, report = step(st, jnp.ones((1,)) * 1e-6)
    assert float(jnp.mean(st.params["w"]["kernel"] ** 2)) < float(jnp.mean(p["w"]["kernel"] ** 2))


def test_split_and_merge():
    p = params()
    trained, frozen = state.split(p, lambda path: path[0] == "head")
    assert set(trained) == {"head"} and set(frozen) == {"layers"}
    jax.tree.map(np.testing.assert_array_equal, state.merge(trained, frozen), p)
    trained, frozen = state.split(p, lambda path: path[-1] == "kernel")
    jax.tree.map(np.testing.assert_array_equal, state.merge(trained, frozen), p)
