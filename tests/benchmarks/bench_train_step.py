"""Time and memory of one whole training step: loss, gradient, optimiser.

    python -m tests.benchmarks.bench_train_step                  # sizes that suit this device
    python -m tests.benchmarks.bench_train_step --size 512 --batch 2 --dtype bfloat16
    python -m tests.benchmarks.bench_train_step --mesh 1,8,1,1 --remat block,dots,attention
    python -m tests.benchmarks.bench_train_step --network unet --batch 4 --remat block

On a GPU GS-LRM's step is also timed in torch, in the same run, where torch sees that GPU:
same sizes and dtype, blocks of the same shape (scaled_dot_product_attention, fused AdamW), without
the rasterizer on either side, so that the two compare. Compilation is a column of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import gslrm as gslrm_config
from configs import mvdiff as mvdiff_config
from mouselift_jax.models import gslrm as network
from mouselift_jax.pipelines import views_cost
from mouselift_jax.pipelines.pictures import laid
from mouselift_jax.stages import gslrm, mvdiff
from mouselift_jax.stages.harness import cost
from mouselift_jax.training import loop
from mouselift_jax.training.trainer import Task, Trainer
from tests.benchmarks import report


def settings(a: argparse.Namespace, name: str, remat: str) -> Any:
    """The stage's config at the sizes of the benchmark."""
    config = (gslrm_config if name == "gslrm" else mvdiff_config).get_config(a.variant)
    config.data.size, config.train.batch_size, config.train.dtype = a.size, a.batch, a.dtype
    config.train.remat, config.train.accum_steps = remat, 1
    if name == "gslrm":
        config.loss.perceptual, config.loss.ssim, config.loss.masked = 0.0, 0.0, False
    mesh = config.train.mesh
    mesh.data, mesh.fsdp, mesh.tensor, mesh.sequence = (int(n) for n in a.mesh.split(","))
    if a.layers and name == "gslrm":
        config.model.n_layers = a.layers
    return config


def make_batch(config: Any) -> Any:
    """Random pictures seen by cameras in a ring."""
    from mouselift_jax.geometry.rig import rig_from_angles

    shapes = gslrm.batch_shapes(config)
    b, v, s = shapes.images.shape[:3]
    rig = rig_from_angles(270 - 360 / v * np.arange(v), 15.0, 2.7, 1.07 * s, s)
    rng = np.random.default_rng(0)
    return shapes._replace(
        images=rng.integers(0, 256, (b, v, s, s, 4), np.uint8) | np.uint8([0, 0, 0, 255]),
        K=np.broadcast_to(np.float32(rig.K), (b, v, 3, 3)),
        c2w=np.broadcast_to(np.float32(rig.c2w), (b, v, 4, 4)),
        sample_index=np.arange(b, dtype=np.int32),
        camera_ids=np.zeros((b, v), np.int32),
        background=np.ones((b, 3), np.float32),
    )


def network_only(config: Any) -> Task:
    """The network without the rasterizer: the mean square of what it puts out is the loss."""
    task, model = gslrm.make_task(config), network.GSLRM(gslrm.network_config(config))
    n = config.data.n_inputs

    def loss(params: Any, batch: Any, *, rng: Any, step: Any) -> Any:
        pictures = laid(batch).images[:, :n]
        out = model.apply({"params": params}, pictures, batch.K[:, :n], batch.c2w[:, :n])
        return sum(jnp.mean(jnp.square(x)) for x in jax.tree.leaves(out)), {}

    return dataclasses.replace(task, loss=loss)


def unet_only(config: Any) -> Task:
    """The multi-view UNet on random latents: what it puts out is the loss, as above."""
    side, c = config.data.size // 8, config.model
    module = mvdiff.make_unet(config, 8)
    shapes = {
        "sample": (c.n_views, side, side, c.in_channels),
        "prompts": (c.n_views, 77, c.context_dim),
        "labels": (c.n_views, c.class_dim),
    }
    b = config.train.batch_size

    def loss(params: Any, batch: Any, *, rng: Any, step: Any) -> Any:
        t = jnp.full(b, 500)
        out = module.apply(
            {"params": params}, batch["sample"], t, batch["prompts"], batch["labels"]
        )
        return jnp.mean(jnp.square(out.astype(jnp.float32))), {}

    return Task(
        functools.partial(mvdiff.init_unet, module),
        loss,
        {k: jax.ShapeDtypeStruct((b, *s), jnp.float32) for k, s in shapes.items()},
        flops_per_step=3 * b * c.n_views * views_cost.unet_flops(module.config),
    )


def random_batch(shapes: Any) -> Any:
    """Normal numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def measure(config: Any, name: str, what: str, repeat: int) -> dict[str, Any]:
    """Compile, run, time."""
    if name == "unet":
        task = unet_only(config)
    else:
        task = gslrm.make_task(config) if what == "whole step" else network_only(config)
    trainer = Trainer(task, config.train)
    rows = random_batch(task.batch) if name == "unet" else make_batch(config)
    state, batch = trainer.create(), trainer.put(rows)
    started = time.perf_counter()
    state, metrics = trainer.step(state, batch)
    jax.block_until_ready(metrics)
    compiled = time.perf_counter() - started
    times, cpu = [], time.process_time()
    for _ in range(repeat):
        started = time.perf_counter()
        state, metrics = trainer.step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - started)
    best, peak = min(times), loop.peak_flops()
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "what": what,
        "compile_s": compiled,
        "step_s": best,
        "processor_s": (time.process_time() - cpu) / repeat,
        "flops": task.flops_per_step,
        "mfu": task.flops_per_step / best / peak if peak else None,
        "peak_bytes": stats.get("peak_bytes_in_use"),
    }


def plan(config: Any) -> dict[str, Any]:
    """The compiler's own figures for the whole step."""
    made = cost.cost(Trainer(gslrm.make_task(config), config.train))
    found = {k: v for k, v in dataclasses.asdict(made).items() if not isinstance(v, dict)}
    return found | {f"{k} bytes": size for k, (_, size) in made.collectives.items()}


def torch_peer(config: Any, repeat: int) -> dict[str, Any] | None:
    """The same network in torch on the same GPU; None where torch sees none."""
    try:
        import torch
    except ImportError:
        return None
    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        return None
    from torch import nn
    from torch.nn import functional as F

    c, d, dev = gslrm.network_config(config), config.data, "cuda"
    dtype = getattr(torch, config.train.dtype)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            w = c.width
            self.n1, self.n2 = nn.LayerNorm(w, bias=False), nn.LayerNorm(w, bias=False)
            self.qkv, self.fc = nn.Linear(w, 3 * w, bias=False), nn.Linear(w, w, bias=False)
            self.up = nn.Linear(w, c.mlp_ratio * w, bias=False)
            self.down = nn.Linear(c.mlp_ratio * w, w, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(self.n1(x)).unflatten(-1, (3, c.n_heads, c.head_dim)).unbind(2)
            heads = (t.transpose(1, 2) for t in (q, k, v))
            x = x + self.fc(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.n2(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(c.patch_size**2 * c.in_channels, c.width, bias=False)
            self.blocks = nn.ModuleList(Block() for _ in range(c.n_layers))
            self.head = nn.Linear(c.width, c.patch_size**2 * c.gaussian_channels, bias=False)

        def forward(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            return self.head(x)

    net = Net().to(dev)
    adam = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    tokens = d.n_inputs * (d.size // c.patch_size) ** 2
    x = torch.rand(config.train.batch_size, tokens, c.patch_size**2 * c.in_channels, device=dev)

    def step() -> None:
        with torch.autocast(dev, dtype, enabled=dtype != torch.float32):
            loss = net(x).float().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    times = []
    for _ in range(repeat + 2):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated()
    return {"what": "torch, network", "step_s": min(times[2:]), "peak_bytes": peak}


def main() -> None:
    """Measure and write JSON."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="gslrm,unet")
    parser.add_argument("--variant", default="tiny" if on_cpu else "base")
    parser.add_argument("--size", type=int, default=64 if on_cpu else 512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--mesh", default="-1,1,1,1")
    parser.add_argument("--remat", default="block")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--plan", action="store_true", help="also the compiler's memory plan")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    rows, plans = [], []
    for name, remat in itertools.product(a.network.split(","), a.remat.split(",")):
        config = settings(a, name, remat)
        about = {"network": name, "variant": a.variant, "size": a.size, "batch": a.batch}
        about |= {"dtype": a.dtype, "mesh": a.mesh, "remat": remat}
        for what in ("network", "whole step") if name == "gslrm" else ("network",):
            rows.append(about | measure(config, name, what, a.repeat))
        if name == "gslrm" and (peer := torch_peer(config, a.repeat)):
            rows.append(about | peer)
        if a.plan and name == "gslrm":
            plans.append(about | plan(config))
    report.write("train_step", {"": rows} | ({"as compiled": plans} if plans else {}), a.out)


if __name__ == "__main__":
    main()
