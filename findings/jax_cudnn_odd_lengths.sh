#!/usr/bin/env bash
# jax's cuDNN attention takes odd lengths until a gradient is asked, also without any bias.
#
# The likely guess: jax.nn.dot_product_attention(implementation="cudnn") takes any number of tokens, as
# flash attention does elsewhere; what lowers forward lowers with its gradient. One who reads the source
# finds the rule "patterns with bias, seqlen should be divisible by 2" and takes it for one about biases.
# What happens: forward lowers at 4096 queries and 77 keys; its gradient raises NotImplementedError
# "Unsupported sequence length Q 4096, KV 77." without a bias, too: an absent bias becomes an empty
# array before the rule asks `bias is not None`. Keys padded to 78 with key_value_seq_lengths lower.
# Why it matters here: text encoders give 77 tokens, GS-LRM's counts depend on picture and patch. A probe
# that asks forward only chooses cuDNN, and training stops at its first step on the GPU. The product
# pads odd lengths (mouselift_jax/models/attention.py).
# Source: jax 0.10.2, jax/_src/cudnn/fused_attention_stablehlo.py, check_is_flash_attention and
# dot_product_attention. Nothing is executed on a GPU: programs are lowered for one.
#
# Needs python3 >= 3.11, Linux x86_64, 2 GB of disk; no GPU, no driver. Run: bash findings/jax_cudnn_odd_lengths.sh
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv v
v/bin/pip install -q jax==0.10.2 jaxlib==0.10.2
v/bin/pip install -q --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cudnn-cu12==9.28.0.42
cat > lower.py <<'PY'
import jax, jax.numpy as jnp
def attend(q, k, v, lengths=None):
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")
    return out.astype(jnp.float32).sum()
def array(n, dtype=jnp.bfloat16): return jax.ShapeDtypeStruct((1, n, 16, 64), dtype)
def tried(f, *args):
    try:
        text = jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
        return "lowers to cuDNN" if "__cudnn$fmha" in text else "lowers, not to cuDNN"
    except NotImplementedError as e:
        return f"NotImplementedError: {e}"
gradient = jax.grad(attend, argnums=(0, 1, 2))
print("jax", jax.__version__)
print("forward, 4096 x 77:", tried(attend, array(4096), array(77), array(77)))
print("gradient, 4096 x 78:", tried(gradient, array(4096), array(78), array(78)))
print("gradient, 4096 x 77:", tried(gradient, array(4096), array(77), array(77)))
real = jax.ShapeDtypeStruct((1,), jnp.int32)
print("gradient, 77 padded to 78:", tried(gradient, array(4096), array(78), array(78), real))
PY
JAX_PLATFORMS=cpu v/bin/python lower.py | tee seen
expected="forward, 4096 x 77: lowers to cuDNN
gradient, 4096 x 78: lowers to cuDNN
gradient, 4096 x 77: NotImplementedError: Unsupported sequence length Q 4096, KV 77.
gradient, 77 padded to 78: lowers to cuDNN"
[ "$(tail -4 seen)" = "$expected" ] || { echo "CHANGED: not"; echo "$expected"; exit 1; }
