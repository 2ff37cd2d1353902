"""One suite for every attention backend that can run here; splash runs interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import BackendError, ConfigError
from mouselift_jax.models import attention as lib
from mouselift_jax.models import layers
from mouselift_jax.models.attention import attention

RUNNABLE = ["xla", "blocked", "chunked", "splash_interpret", None]


def reference(q, k, v, kv_length=None):
    """The definition, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = k[:, :kv_length], v[:, :kv_length]
    s = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", p / p.sum(-1, keepdims=True), v)


def make(t, s, heads=2, size=16, batch=2, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = ((batch, t, heads, size), (batch, s, heads, size), (batch, s, heads, size))
    return tuple(jnp.asarray(rng.normal(size=n) * scale, jnp.float32) for n in shapes)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("t,s,kv_length", [(128, 128, None), (50, 50, None), (30, 150, 131)])
def test_equals_the_definition(name, t, s, kv_length):
    q, k, v = make(t, s)
    with jax.default_matmul_precision("highest"):
        out = attention(q, k, v, implementation=name, kv_length=kv_length)
    np.testing.assert_allclose(out, reference(q, k, v, kv_length), atol=3e-6)


@pytest.mark.parametrize("name", ["blocked", "chunked", "splash_interpret"])
def test_gradients_equal_those_of_xla(name):
    q, k, v = make(50, 70, batch=1)
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def grads(impl):
        f = lambda *x: (attention(*x, implementation=impl, kv_length=61) * weight).sum()  # noqa: E731
        return jax.grad(f, argnums=(0, 1, 2))(q, k, v)

    with jax.default_matmul_precision("highest"):
        for got, want in zip(grads(name), grads("xla"), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)


def test_chunks_that_do_not_divide_the_sequence_agree():
    q, k, v = make(37, 53)
    with jax.default_matmul_precision("highest"):
        out = lib._chunked(q, k, v, q_chunk=8, kv_chunk=16)
    np.testing.assert_allclose(out, reference(q, k, v), atol=3e-6)


def test_gradients_of_blocks_that_do_not_divide_the_sequence_equal_those_of_xla():
    """Padding queries, whose weights are not zero, give nothing to keys and values."""
    q, k, v = make(37, 53)
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def grads(run, **how):
        f = lambda *x: (run(*x, kv_length=47, **how) * weight).sum()  # noqa: E731
        return jax.value_and_grad(f, argnums=(0, 1, 2))(q, k, v)

    got, want = grads(lib._blocked, q_block=8), grads(lib._xla)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_scores_far_from_zero_do_not_overflow():
    q, k, v = make(20, 40, scale=60.0)
    with jax.default_matmul_precision("highest"):
        out = lib._chunked(q, k, v, q_chunk=8, kv_chunk=16)
        blocked = lib._blocked(q, k, v, q_block=8)
    np.testing.assert_allclose(out, reference(q, k, v), atol=1e-2)
    np.testing.assert_allclose(blocked, reference(q, k, v), atol=1e-2)


@pytest.mark.parametrize("name", ["xla", "blocked", "chunked", "splash_interpret"])
def test_half_precision_keeps_its_dtype_and_is_close(name):
    q, k, v = (x.astype(jnp.bfloat16) for x in make(64, 64, scale=1.0))
    out = attention(q, k, v, implementation=name)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), reference(q, k, v), atol=3e-2)


@pytest.mark.parametrize("name", ["blocked", "chunked"])
def test_no_score_matrix_is_held(name):
    tokens = 16384
    x = jax.ShapeDtypeStruct((1, tokens, 4, 64), jnp.bfloat16)
    loss = lambda q, k, v: attention(q, k, v, implementation=name).astype(jnp.float32).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
    scores = 4 * tokens**2 * 2
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 4


def test_the_automatic_choice_on_a_cpu_is_blocked_when_the_scores_would_be_large(caplog):
    x = jax.ShapeDtypeStruct((1, 8192, 1, 8), jnp.float32)
    lib._say.cache_clear()
    with caplog.at_level("INFO", logger=lib.__name__):
        for _ in range(2):
            jax.eval_shape(attention, x, x, x)
    assert [r.getMessage() for r in caplog.records] == [
        "attention: blocked (cpu, float32, 8192 x 8192 tokens)"
    ]


@pytest.mark.parametrize("name", ["gslrm", "unet", "vae", "image_encoder"])
def test_initialising_a_network_says_nothing_of_shapes_that_it_will_not_work_on(caplog, name):
    """Through scan, remat and everything else that stands between init and attention."""
    from mouselift_jax.weights.kinds import PIPELINE_CONFIGS
    from mouselift_jax.weights.networks import network
    from tests import torch_sources as fake

    known = name in fake.SETTINGS
    config = PIPELINE_CONFIGS[name](fake.SETTINGS[name]) if known else fake.GSLRM
    entry = network(name)
    module, inputs = entry.make(config, jnp.float32), entry.inputs(config)
    lib._say.cache_clear()
    with caplog.at_level("INFO", logger=lib.__name__):
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        assert not caplog.records
        jax.eval_shape(module.apply, shapes, *inputs)
    assert caplog.records and "attention: xla" in caplog.text
    lib._say.cache_clear()


def test_a_gpu_without_cudnn_is_told_why(caplog, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(lib, "unavailable", lambda *_: "cuDNN attention does not compile")
    lib._say.cache_clear()
    x = jax.ShapeDtypeStruct((1, 16, 1, 8), jnp.bfloat16)
    with caplog.at_level("INFO", logger=lib.__name__):
        jax.eval_shape(attention, x, x, x)
    lib._say.cache_clear()
    assert "attention: xla (gpu, bfloat16" in caplog.text
    assert "not cudnn: cuDNN attention does not compile" in caplog.text


@pytest.fixture
def cudnn_anywhere(monkeypatch):
    """cuDNN's library as jax asks for it, absent here: lowering needs only its version."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 92800)


@pytest.mark.parametrize("t,s,kv_length", [(64, 77, None), (63, 63, None), (64, 80, 77)])
def test_cudnn_takes_odd_lengths_in_both_passes(cudnn_anywhere, t, s, kv_length):
    """77 text tokens: jax refuses odd lengths where there is a gradient (the UNet in bf16)."""
    q, k = (jax.ShapeDtypeStruct((2, n, 2, 64), jnp.bfloat16) for n in (t, s))

    def loss(*x):
        return lib._cudnn(*x, kv_length=kv_length).astype(jnp.float32).sum()

    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(q, k, k)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "fmhaSoftmaxBackward" in text
    assert [x.shape for x in traced.out_info[1]] == [q.shape, k.shape, k.shape]


@pytest.mark.parametrize("t,s,kv_length", [(20, 77, None), (19, 19, None), (20, 80, 77)])
def test_padding_for_cudnn_changes_nothing(monkeypatch, t, s, kv_length):
    plain = jax.nn.dot_product_attention
    here = lambda *x, **kw: plain(*x, **kw | {"implementation": "xla"})  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", here)
    q, k, v = make(t, s)
    with jax.default_matmul_precision("highest"):
        out = lib._cudnn(q, k, v, kv_length=kv_length)
    np.testing.assert_allclose(out, reference(q, k, v, kv_length), atol=3e-6)


def test_cudnn_is_asked_at_the_true_lengths_and_head_size(caplog, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    asked = []
    monkeypatch.setattr(lib, "_cudnn_fault", lambda *how: asked.append(how) or "not this one")
    q, k = (jax.ShapeDtypeStruct((2, n, 2, 40), jnp.bfloat16) for n in (64, 77))
    with caplog.at_level("INFO", logger=lib.__name__):
        jax.eval_shape(attention, q, k, k)
        whole = jax.ShapeDtypeStruct(q.shape, jnp.float32)
        jax.eval_shape(attention, whole, whole, whole)
    lib._say.cache_clear()
    assert asked == [("bfloat16", 64, 77, 40, None)]
    assert "not cudnn: float32: products on the slow units" in caplog.text  # and how to avoid it
    assert "train.dtype" in caplog.text


def test_a_cudnn_that_refuses_the_backward_pass_is_not_taken(monkeypatch):
    @jax.custom_vjp
    def forward_only(q, k, v):
        return q

    def refuse(*_):
        raise NotImplementedError("Unsupported sequence length Q 64, KV 77.")

    forward_only.defvjp(lambda q, k, v: (q, None), refuse)
    monkeypatch.setattr(lib, "_cudnn", lambda *x, kv_length: forward_only(*x))
    lib._cudnn_fault.cache_clear()
    fault = lib._cudnn_fault("bfloat16", 64, 77, 64, None)
    lib._cudnn_fault.cache_clear()
    assert fault.endswith("Unsupported sequence length Q 64, KV 77.")


def test_unknown_and_unavailable_backends_are_errors():
    q, k, v = make(4, 4)
    with pytest.raises(ConfigError, match="did you mean 'chunked'"):
        attention(q, k, v, implementation="chunk")
    for name in ("cudnn", "splash"):
        with pytest.raises(BackendError, match="device cpu"):
            attention(q, k, v, implementation=name)


@pytest.mark.parametrize("policy, kernels", [("none", 3), ("block", 4), ("attention", 3)])
def test_a_saved_output_spares_the_kernel_a_second_run(policy, kernels):
    """Forward, and two of the backward pass; the sums of the softmax must be saved as well."""
    from jax.interpreters import partial_eval

    q, k, v = make(128, 128, batch=1)

    def block(q, k, v):
        out = attention(q, k, v, implementation="splash_interpret")
        return jnp.sum(jax.ad_checkpoint.checkpoint_name(out, layers.ATTENTION_OUT) ** 2)

    if policy != "none":
        block = jax.checkpoint(block, policy=layers.REMAT_POLICIES[policy]())
    traced = jax.make_jaxpr(jax.value_and_grad(block, argnums=(0, 1, 2)))(q, k, v)
    needed, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    assert str(needed).count("pallas_call[") == kernels
