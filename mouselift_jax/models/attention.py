"""Attention, one function for every network and device.

Letters: B batch, T queries, S keys, H heads, D head size. Backends:

| name | runs on | memory | notes |
|---|---|---|---|
| `xla` | everything | O(T S) | fastest below about 4096 tokens |
| `blocked` | everything, made for CPUs | O(T) | one head and 256 queries at a time |
| `chunked` | everything | O(T) | online softmax over key chunks, recomputed in the backward pass |
| `cudnn` | NVIDIA, sm80 and later, bf16/fp16 | O(T) | flash attention of cuDNN |
| `splash` | TPU | O(T) | Pallas flash kernel; `splash_interpret` runs the same kernel anywhere |

Under a mesh (`jax.set_mesh`) with logical axis rules, every backend but `xla` runs inside
`jax.shard_map`: queries stay sharded over batch, tokens and heads; keys and values are gathered
over the token axis. At 24,578 tokens of width 1024 one layer's keys and values are 100 MB in bf16
against 2.5 TFLOP of products, so one all-gather a layer can hide behind them without a ring.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mouselift_jax import target
from mouselift_jax.errors import BackendError, ConfigError, nearest
from mouselift_jax.models.layers import ATTENTION_OUT, mesh_spec

_log = logging.getLogger(__name__)

Q_AXES = ("batch", "tokens", "heads", "head_dim")
KV_AXES = ("batch", "kv_tokens", "heads", "head_dim")

SMALL = 4096**2  # T * S up to which the whole score matrix is cheaper than chunks
SPLASH_BLOCK = 1024  # fastest square block measured by others for head size 64; a multiple of 128
Q_CHUNK, KV_CHUNK = 1024, 4096
Q_BLOCK = 256  # queries whose scores stay in a CPU core's cache
BLOCKED_FROM = 256**2  # T * S from which that is faster on a CPU than the whole matrix


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    *,
    implementation: str | None = None,
    kv_length: int | None = None,
    batch: str = "batch",
    quiet: bool = False,
) -> Float[Array, "B T H D"]:
    """softmax(q k^T / sqrt(D)) v over all keys, in the dtype of `q`, softmax in float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        implementation: a backend of the table above, or None for the best one here (said once in
            the log).
        kv_length: only the first `kv_length` keys are real, the rest is padding; None = all.
        batch: what the first axis is to the mesh, "batch" or "picture".
        quiet: do not say the choice. For a module that is being initialised: any shape makes its
            weights, so the shapes then are not those that it will work on.

    Raises:
        ConfigError: no such backend.
        BackendError: the backend named cannot run on this device or dtype.
    """
    name = implementation
    if name is None:
        name = _choose(q, k, kv_length, quiet)
    elif name not in BACKENDS:
        raise ConfigError("unknown attention backend", where=name, fix=nearest(name, BACKENDS))
    else:
        reason = unavailable(name, q, k, kv_length)
        if reason is not None:
            raise BackendError(
                f"attention backend {name!r} cannot run here",
                expected=BACKEND_NEEDS[name],
                found=reason,
                fix="leave the attention key empty to let the best backend be chosen",
            )
    if kv_length == k.shape[1]:
        kv_length = None
    run = functools.partial(BACKENDS[name], kv_length=kv_length)
    return run(q, k, v) if name == "xla" else _per_shard(run, q, k, v, batch)


# --- choice --------------------------------------------------------------------------------------

BACKEND_NEEDS = {
    "xla": "any device",
    "blocked": "any device",
    "chunked": "any device",
    "cudnn": "an NVIDIA GPU, bfloat16 or float16, head size <= 128 and a multiple of 8",
    "splash": "a TPU",
    "splash_interpret": "any device",
}


def unavailable(name: str, q: Any, k: Any, kv_length: int | None = None) -> str | None:
    """Why a backend cannot serve arrays of these dtypes and shapes here; None when it can."""
    device = target.platform()
    if name == "splash" and device != "tpu":
        return f"device {device}"
    if name == "cudnn":
        if device != "gpu":
            return f"device {device}"
        size = q.shape[-1]
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return (
                f"{q.dtype}: products on the slow units, and the backward pass repeats them; "
                "bfloat16 takes it (train.dtype, or dtype where nothing is trained)"
            )
        if size > 128 or size % 8:
            return f"head size {size}"
        return _cudnn_fault(str(q.dtype), q.shape[1], k.shape[1], size, kv_length)
    return None


@functools.cache
def _cudnn_fault(dtype: str, n_q: int, n_k: int, size: int, kv_length: int | None) -> str | None:
    """Try cuDNN once on one head of these lengths, forward and backward.

    Some CUDA installations miss the engine libraries, and what is refused depends on the lengths
    and differs between the two passes.
    """
    q, k = (jax.ShapeDtypeStruct((1, n, 1, size), jnp.dtype(dtype)) for n in (n_q, n_k))

    def probe(q: Array, k: Array, v: Array) -> Any:
        out, pull = jax.vjp(functools.partial(_cudnn, kv_length=kv_length), q, k, v)
        return out, pull(out)

    try:
        if target.is_absent():
            jax.jit(probe).trace(q, k, k).lower(lowering_platforms=("cuda",))
        else:
            jax.jit(probe).lower(q, k, k).compile()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"cuDNN attention does not compile: {str(error).splitlines()[0]}"
    return None


def _choose(q: Array, k: Array, kv_length: int | None, quiet: bool) -> str:
    device, shape, why = target.platform(), (q.shape[1], k.shape[1]), None
    if device == "gpu":
        why = unavailable("cudnn", q, k, kv_length)
    if device == "tpu" and min(shape) >= SPLASH_BLOCK:
        name = "splash"
    elif device == "gpu" and why is None:
        name = "cudnn"
    elif device == "cpu" and shape[0] * shape[1] >= BLOCKED_FROM:
        name = "blocked"
    elif shape[0] * shape[1] <= SMALL:
        name = "xla"
    else:
        name = "chunked"
    if not quiet:
        _say(name, device, str(q.dtype), shape, why)
    return name


@functools.cache
def _say(name: str, device: str, dtype: str, shape: tuple[int, int], why: str | None) -> None:
    """Once for each choice; `why` a faster backend was not taken."""
    note = "" if why is None else f"; not cudnn: {why}"
    _log.info("attention: %s (%s, %s, %d x %d tokens)%s", name, device, dtype, *shape, note)


# --- backends ------------------------------------------------------------------------------------


def _xla(q: Array, k: Array, v: Array, kv_length: int | None = None) -> Array:
    mask = None if kv_length is None else (jnp.arange(k.shape[1]) < kv_length)[None, None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")


def _cudnn(q: Array, k: Array, v: Array, kv_length: int | None = None) -> Array:
    # Odd lengths are refused where there is a gradient, so both are padded to even ones. A padding
    # query is answered and cut off: it gives no gradient.
    n_q, n_k = q.shape[1], kv_length or k.shape[1]
    q, k, v = (_pad_to(x, 2) for x in (q, k, v))
    lengths = None if n_k == k.shape[1] else jnp.full(q.shape[0], n_k, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )[:, :n_q]


def _pad_to(x: Array, multiple: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0)))


def _chunks(x: Array, size: int) -> Array:
    """[B,T,H,D] -> [T/size,B,size,H,D], zero-padded."""
    x = _pad_to(x, size)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _chunked(
    q: Array,
    k: Array,
    v: Array,
    kv_length: int | None = None,
    q_chunk: int = Q_CHUNK,
    kv_chunk: int = KV_CHUNK,
) -> Array:
    """Online softmax (Rabe & Staats 2021): no array larger than q_chunk x kv_chunk scores."""
    n_q, n_k = q.shape[1], kv_length or k.shape[1]
    q_chunk, kv_chunk = min(q_chunk, n_q), min(kv_chunk, n_k)
    keys, values = _chunks(k[:, :n_k], kv_chunk), _chunks(v[:, :n_k], kv_chunk)
    first = jnp.arange(keys.shape[0]) * kv_chunk
    scale = 1 / math.sqrt(q.shape[-1])

    def one_query_chunk(q_c: Array) -> Array:
        b, t, h, d = q_c.shape

        def step(carry: tuple[Array, Array, Array], chunk: tuple[Array, Array, Array]) -> Any:
            peak, total, out = carry
            k_c, v_c, start = chunk
            s = jnp.einsum("bthd,bshd->bhts", q_c, k_c, preferred_element_type=jnp.float32)
            is_key = start + jnp.arange(kv_chunk) < n_k
            s = jnp.where(is_key, s * scale, -jnp.inf)
            new = jnp.maximum(peak, s.max(-1))
            p = jnp.exp(s - new[..., None])
            decay = jnp.exp(peak - new)
            o = jnp.einsum(
                "bhts,bshd->bhtd", p.astype(v_c.dtype), v_c, preferred_element_type=jnp.float32
            )
            return (new, decay * total + p.sum(-1), decay[..., None] * out + o), None

        # Finite, so that the first decay is exp(-big) = 0 and never inf - inf.
        start = (
            jnp.full((b, h, t), jnp.finfo(jnp.float32).min),
            jnp.zeros((b, h, t)),
            jnp.zeros((b, h, t, d)),
        )
        (_, total, out), _ = jax.lax.scan(jax.checkpoint(step), start, (keys, values, first))
        return jnp.swapaxes(out / total[..., None], 1, 2).astype(q_c.dtype)

    out = jax.lax.map(jax.checkpoint(one_query_chunk), _chunks(q, q_chunk))  # [T/c,B,c,H,D]
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :n_q]


# Scores of a block stand as [S,t], keys along the rows. Then every product of both passes takes its
# operands as they lie: XLA's CPU compiler takes twice the time for one that contracts the rows of
# its left operand. Sums over keys run down the columns, which vectorises.


def _heads(x: Array, blocks: int = 1) -> Array:
    """[B,T,H,D] -> [B H,blocks,t,D], float32, zero-padded."""
    b, n, h, d = x.shape
    size = -(-n // blocks)
    x = jnp.pad(x, ((0, 0), (0, size * blocks - n), (0, 0), (0, 0)))
    return jnp.swapaxes(x, 1, 2).reshape(b * h, blocks, size, d).astype(jnp.float32)


def _tokens(x: Array, like: Array) -> Array:
    """[B H,...,D] -> [B,T,H,D] of `like`, without the padding."""
    b, n, h, d = like.shape
    return jnp.swapaxes(x.reshape(b, h, -1, d)[:, :, :n], 1, 2).astype(like.dtype)


def _blocked(
    q: Array, k: Array, v: Array, kv_length: int | None = None, q_block: int = Q_BLOCK
) -> Array:
    """One head and a block of queries at a time: no array larger than their scores."""
    n_k = kv_length or k.shape[1]
    return _blocked_pass(-(-q.shape[1] // q_block), q, k[:, :n_k], v[:, :n_k])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked_pass(blocks: int, q: Array, k: Array, v: Array) -> Array:
    return _blocked_forward(blocks, q, k, v)[0]


def _blocked_forward(blocks: int, q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
    """Beside the answers what the backward pass needs: log of each query's softmax sum, too."""
    scale = 1 / math.sqrt(q.shape[-1])

    def head(args: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v = args
        # A row of ones below the values: their product with the weights is the softmax's sum.
        values = jnp.concatenate([v[0].T, jnp.ones((1, v.shape[1]))])  # [D+1,S]

        def block(q: Array) -> tuple[Array, Array]:
            s = k[0] @ (q * scale).T  # [S,t]
            peak = s.max(0)
            out = values @ jnp.exp(s - peak)
            return (out[:-1] / out[-1]).T, peak + jnp.log(out[-1])

        return jax.lax.map(block, q)

    out, log_sum = jax.lax.map(head, (_heads(q, blocks), _heads(k), _heads(v)))
    out = _tokens(out, q)
    return out, (q, k, v, out, log_sum)


def _blocked_backward(blocks: int, kept: tuple[Array, ...], d_out: Array) -> tuple[Array, ...]:
    """The weights are made again from the kept sums (Dao et al. 2022)."""
    q, k, v, out, log_sum = kept
    scale = 1 / math.sqrt(q.shape[-1])
    d_out, out = _heads(d_out, blocks), _heads(out, blocks)
    delta = (d_out * out).sum(-1)  # [B H,blocks,t]: what the softmax's own gradient takes off

    def head(args: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        q, k, v, d_out, delta, log_sum = args
        k, v = k[0], v[0]
        k_columns = k.T

        def block(sums: tuple[Array, Array], args: tuple[Array, ...]) -> Any:
            d_k, d_v = sums
            q, d_out, delta, log_sum = args
            p = jnp.exp(k @ (q * scale).T - log_sum)  # [S,t]
            d_s = p * (v @ d_out.T - delta)
            return (d_k + d_s @ q, d_v + p @ d_out), (k_columns @ d_s).T

        (d_k, d_v), d_q = jax.lax.scan(
            block, (jnp.zeros_like(k), jnp.zeros_like(v)), (q, d_out, delta, log_sum)
        )
        return d_q * scale, d_k * scale, d_v

    args = (_heads(q, blocks), _heads(k), _heads(v), d_out, delta, log_sum)
    return tuple(
        _tokens(x, like) for x, like in zip(jax.lax.map(head, args), (q, k, v), strict=True)
    )


_blocked_pass.defvjp(_blocked_forward, _blocked_backward)


def _splash(
    q: Array,
    k: Array,
    v: Array,
    kv_length: int | None = None,
    block: int = SPLASH_BLOCK,
    interpret: bool = False,
) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    n_q, n_k = q.shape[1], kv_length or k.shape[1]
    block_q, block_kv = (min(block, -(-n // 128) * 128) for n in (n_q, n_k))
    q = _pad_to(q * (1 / math.sqrt(q.shape[-1])), block_q)
    k, v = _pad_to(k[:, :n_k], block_kv), _pad_to(v[:, :n_k], block_kv)
    # Padding keys form a segment of their own that no query belongs to.
    segments = kernel.SegmentIds(
        q=jnp.zeros(q.shape[1], jnp.int32),
        kv=(jnp.arange(k.shape[1]) >= n_k).astype(jnp.int32),
    )
    sizes = kernel.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=min(512, block_kv),
        block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=min(512, block_kv),
        block_q_dq=block_q, block_kv_dq=block_kv,
    )  # fmt: skip
    full = masks.MultiHeadMask([masks.FullMask((q.shape[1], k.shape[1]))] * q.shape[2])
    run = kernel.make_splash_mha(
        full, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret,
        # Its backward pass needs the softmax's sums too: saved, the kernel does not run again.
        residual_checkpoint_name=ATTENTION_OUT,
    )  # fmt: skip
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [B,H,T,D]
    out = jax.vmap(lambda q, k, v: run(q, k, v, segment_ids=segments))(*heads_first)
    return jnp.swapaxes(out, 1, 2)[:, :n_q]


BACKENDS: dict[str, Callable[..., Array]] = {
    "xla": _xla,
    "blocked": _blocked,
    "chunked": _chunked,
    "cudnn": _cudnn,
    "splash": _splash,
    "splash_interpret": functools.partial(_splash, block=128, interpret=True),
}


# --- sharding ------------------------------------------------------------------------------------


def _per_shard(run: Callable[..., Array], q: Array, k: Array, v: Array, batch: str) -> Array:
    """Run a kernel on each device's own queries, when a mesh and logical rules are set."""
    q_spec, kv_spec = (
        mesh_spec((batch, *axes[1:]), x.shape) for axes, x in ((Q_AXES, q), (KV_AXES, k))
    )
    if q_spec is None or kv_spec is None:
        return run(q, k, v)
    return jax.shard_map(
        run, in_specs=(q_spec, kv_spec, kv_spec), out_specs=q_spec, check_vma=False
    )(q, k, v)
