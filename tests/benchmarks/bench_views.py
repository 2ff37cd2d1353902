"""Speed of the multi-view UNet at full size, beside the same network in torch.

    python -m tests.benchmarks.bench_views            # CPU: a forward pass, both frameworks in turn
    python -m tests.benchmarks.bench_views --train    # one GPU: a bf16 training step, both in turn

CPU: six views of 32 x 32 latents, float32, diffusers' stock UNet with keys and values of slot 0 put
in front. GPU: 512 px, four objects of six views, remat, against torch with SDPA, bf16,
channels_last and torch.compile. Wall time and processor time: on a busy
machine only the second says something.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import report


def fill(shape: tuple[int, ...], i: int) -> np.ndarray:
    """Weights of about the right size, made without a random generator of 870 million numbers."""
    fan = max(1, int(np.prod(shape[:-1])))
    base = np.random.default_rng(i).normal(size=4099).astype(np.float32)
    return np.resize(base, shape) / np.float32(np.sqrt(fan))


def cpu_seconds() -> float:
    t = os.times()
    return t.user + t.system


def reset_peak() -> None:
    """Forget the peak so far (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:
        pass


def inputs(side: int, batch: int, views: int = 6) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return (
        normal(batch, views, side, side, 8),
        np.full(batch, 500, np.int32),
        normal(batch, views, 77, 1024),
        normal(batch, views, 2048),
    )


def jax_network(dtype: str, remat: bool, side: int) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from mouselift_jax.models.mvunet import MVUNet, MVUNetConfig

    module = MVUNet(MVUNetConfig(sample_size=side), dtype=jnp.dtype(dtype), remat=remat)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs(side, 1))
    tree = jax.eval_shape(lambda a: module.init(jax.random.key(0), *a), args)
    leaves, treedef = jax.tree.flatten(nn.meta.unbox(tree)["params"])
    made = [jnp.asarray(fill(x.shape, i)) for i, x in enumerate(leaves)]
    return module, jax.tree.unflatten(treedef, made)


class SparseAttention:
    """diffusers' attention processor with slot 0's keys and values in front of each view's own."""

    def __init__(self, views: int) -> None:
        self.views = views

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kw):  # noqa: ANN001
        import torch
        import torch.nn.functional as F

        n, t, c = hidden_states.shape
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        if encoder_hidden_states is None:
            k, v = (self._with_hub(x, torch) for x in (k, v))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        return attn.to_out[0](y)

    def _with_hub(self, x: Any, torch: Any) -> Any:
        views = x.unflatten(0, (-1, self.views))
        hub = views[:, :1].expand(-1, self.views, -1, -1)
        return torch.cat([hub, views], dim=2).flatten(0, 1)


def torch_network(side: int) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        net = UNet2DConditionModel(
            sample_size=side,
            in_channels=8,
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2048,
        )
    net = net.to_empty(device="cpu")
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            shape = tuple(p.shape)
            p.copy_(torch.from_numpy(fill(shape[1:] + shape[:1], i).reshape(shape)))
    net.set_attn_processor(SparseAttention(6))
    return net


def torch_inputs(side: int, batch: int, device: str = "cpu") -> tuple[Any, ...]:
    import torch

    sample, t, prompts, labels = (torch.from_numpy(x).to(device) for x in inputs(side, batch))
    return (
        sample.flatten(0, 1).movedim(-1, 1).contiguous(),
        t.repeat_interleave(6),
        prompts.flatten(0, 1),
        labels.flatten(0, 1),
    )


def timed(f: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), cpu_seconds()
    f()
    return time.perf_counter() - wall, cpu_seconds() - cpu


def forward(side: int, repeats: int) -> dict[str, Any]:
    """A forward pass on the CPU, both frameworks in turn, in one process."""
    import jax
    import torch

    start = report.now_gib("VmRSS")
    net = torch_network(side).eval()
    args = torch_inputs(side, 1)

    def run_torch() -> Any:
        with torch.no_grad():
            return net(args[0], args[1], args[2], class_labels=args[3]).sample

    torch_weights = report.now_gib("VmRSS") - start
    reset_peak()
    before = report.now_gib("VmRSS")
    run_torch()
    torch_peak = report.now_gib("VmHWM") - before + torch_weights
    gc.collect()

    start = report.now_gib("VmRSS")
    module, params = jax_network("float32", False, side)
    values = inputs(side, 1)
    began = time.perf_counter()
    compiled = jax.jit(lambda p, a: module.apply({"params": p}, *a)).lower(params, values).compile()
    compile_s = time.perf_counter() - began
    jax_weights = report.now_gib("VmRSS") - start
    reset_peak()
    before = report.now_gib("VmRSS")
    compiled(params, values).block_until_ready()
    jax_peak = report.now_gib("VmHWM") - before + jax_weights
    rows = {"torch": [], "jax": []}
    for _ in range(repeats):
        rows["torch"].append(timed(run_torch))
        rows["jax"].append(timed(lambda: compiled(params, values).block_until_ready()))
    wall, cpu = ({k: float(np.median([r[i] for r in v])) for k, v in rows.items()} for i in (0, 1))
    return {
        "what": f"UNet forward, 6 views of {side} x {side} latents, CPU, float32",
        "wall_s": wall,
        "cpu_s": cpu,
        "ratio_wall": wall["jax"] / wall["torch"],
        "ratio_cpu": cpu["jax"] / cpu["torch"],
        "peak_gib": {"torch": torch_peak, "jax": jax_peak},
        "temp_gib_planned": compiled.memory_analysis().temp_size_in_bytes / 2**30,
        "compile_s": compile_s,
        "repeats": repeats,
    }


def train(batch: int, repeats: int) -> dict[str, Any]:
    """A training step on one GPU: forward, backward, AdamW; both frameworks in turn."""
    import jax
    import jax.numpy as jnp
    import optax
    import torch

    from mouselift_jax.models.mvunet import MVUNetConfig
    from mouselift_jax.pipelines.views_cost import unet_flops

    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        raise SystemExit("bench_views --train needs one GPU that both jax and torch see")
    side = 64
    module, params = jax_network("bfloat16", True, side)
    values = jax.device_put(inputs(side, batch))
    tx = optax.adamw(5e-5, b2=0.999, weight_decay=0.01)
    state = (params, tx.init(params))

    def step(state: Any, a: Any) -> Any:
        params, moments = state
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(module.apply({"params": p}, *a) ** 2))(
            params
        )
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    compiled = jax.jit(step, donate_argnums=0).lower(state, values).compile()

    def run_jax() -> None:
        nonlocal state
        state, loss = compiled(state, values)
        loss.block_until_ready()

    run_jax()
    jax_s = float(np.median([timed(run_jax)[0] for _ in range(repeats)]))
    jax_gib = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
    del state, params

    net = torch_network(side).cuda().to(memory_format=torch.channels_last).train()
    net.enable_gradient_checkpointing()
    net = torch.compile(net)
    args = torch_inputs(side, batch, "cuda")
    optim = torch.optim.AdamW(net.parameters(), 5e-5, fused=True)

    def run_torch() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            out = net(args[0], args[1], args[2], class_labels=args[3]).sample
        out.float().square().mean().backward()
        optim.step()
        optim.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    run_torch()
    torch_s = float(np.median([timed(run_torch)[0] for _ in range(repeats)]))
    useful = 3 * batch * 6 * unet_flops(MVUNetConfig())
    return {
        "what": f"UNet training step, 512 px, {batch} x 6 views, bf16, remat",
        "wall_s": {"jax": jax_s, "torch": torch_s},
        "ratio_wall": jax_s / torch_s,
        "peak_gib": {"jax": jax_gib, "torch": torch.cuda.max_memory_allocated() / 2**30},
        "useful_tflops_per_s": {"jax": useful / jax_s / 1e12, "torch": useful / torch_s / 1e12},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="a training step; always on a GPU")
    parser.add_argument("--side", type=int, default=32, help="latent pixels along a side (CPU)")
    parser.add_argument("--batch", type=int, default=4, help="objects (GPU)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    step = args.train or report.backend() == "gpu"
    found = train(args.batch, args.repeats) if step else forward(args.side, args.repeats)
    what = found.pop("what")
    rows = [
        {"network": who} | {k: v[who] for k, v in found.items() if isinstance(v, dict)}
        for who in ("jax", "torch")
    ]
    alone = [{k: v for k, v in found.items() if not isinstance(v, dict)}]
    report.write("views", {what: rows, "jax / torch": alone}, args.out)


if __name__ == "__main__":
    main()
