"""NVIDIA GPUs as XLA's compiler wants them described, to compile for one that is not here.

Numbers are from NVIDIA's data sheets and CUDA's table of compute capabilities. Nothing runs:
a compiled program's memory is the compiler's own plan, see docs/scaling.md for what it leaves out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from mouselift_jax import target
from mouselift_jax.errors import BackendError, ConfigError, MissingExtraError, nearest

CUDNN = (9, 10, 0)  # the oldest whose attention takes every head size and length used here
# Of a card's memory, what CUDA's context, libraries, cuDNN's work space and fragmentation leave.
USABLE = 0.9


@dataclasses.dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        title: as the driver calls it.
        memory: bytes.
        capability: compute capability.
        cores: streaming multiprocessors.
        fpus: float32 units of one.
        threads: resident on one.
        shared: bytes of shared memory of one, and the most that a block may ask for.
        bandwidth: of its memory, bytes/s.
        l2: bytes.
        clock: GHz.
    """

    title: str
    memory: int
    capability: tuple[int, int]
    cores: int
    fpus: int
    threads: int
    shared: tuple[int, int]
    bandwidth: int
    l2: int
    clock: float

    def text(self) -> str:
        """XLA's GpuTargetConfigProto.

        Without `name` and `cub_version`: with them XLA looks up CUB's sort, and then asks the CUDA
        runtime for the device that is not there.
        """
        major, minor = self.capability
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared[0]}
  threads_per_core_limit: {self.threads}
  core_count: {self.cores}
  fpus_per_core: {self.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth}
  l2_cache_size: {self.l2}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory}
  shared_memory_per_block_optin: {self.shared[1]}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: {CUDNN[2]} }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{self.title}"
"""


_A100 = ((8, 0), 108, 64, 2048, (167936, 166912))
_HOPPER = ((9, 0), 132, 128, 2048, (233472, 232448))
_GEFORCE = (128, 1536, (102400, 101376))
CARDS = {
    "h200": Card("NVIDIA H200", 151397597184, *_HOPPER, 4800 * 10**9, 52428800, 1.98),
    "h100": Card("NVIDIA H100 80GB HBM3", 84942979072, *_HOPPER, 3352 * 10**9, 52428800, 1.98),
    "a100": Card("NVIDIA A100-SXM4-80GB", 85095874560, *_A100, 2039 * 10**9, 41943040, 1.41),
    "a100_40": Card("NVIDIA A100-SXM4-40GB", 42298834944, *_A100, 1555 * 10**9, 41943040, 1.41),
    "rtx4090": Card(
        "NVIDIA GeForce RTX 4090", 25250627584, (8, 9), 128, *_GEFORCE, 1008 * 10**9, 75497472, 2.52
    ),
    "rtx3090": Card(
        "NVIDIA GeForce RTX 3090", 25438126080, (8, 6), 82, *_GEFORCE, 936 * 10**9, 6291456, 1.695
    ),
}  # fmt: skip


def find_card(name: str) -> Card:
    """A card by name.

    Raises:
        ConfigError: it is not in the list.
    """
    if name not in CARDS:
        raise ConfigError(
            "no such card",
            where=f"--gpu={name}",
            expected=" | ".join(CARDS),
            fix=nearest(name, CARDS),
        )
    return CARDS[name]


def _compiler_is_installed() -> bool:
    parts = ("jax_cuda12_plugin", "jax_plugins", "jax_plugins.xla_cuda12")
    try:
        return all(importlib.util.find_spec(name) for name in parts)
    except ModuleNotFoundError:
        return False


def devices(card: Card, count: int = 1) -> Sequence[Any]:
    """`count` of these GPUs in one machine, to compile for.

    Raises:
        MissingExtraError: XLA's compiler for NVIDIA GPUs is not installed.
        BackendError: it is, and refuses.
    """
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=card.text(), topology=f"1x1x{count}"
        )
    except RuntimeError as error:  # NotImplementedError is one
        if not _compiler_is_installed():
            raise MissingExtraError("jax-cuda12-plugin", "gpu-plan", "--gpu") from error
        raise BackendError(
            "XLA's compiler for NVIDIA GPUs is installed and refuses",
            where=card.title,
            found=str(error)[:500],
            fix=f"install the parts of this jax: pip install jax-cuda12-plugin=={jax.__version__} "
            f"jax-cuda12-pjrt=={jax.__version__} nvidia-cuda-nvcc-cu12",
        ) from error
    return found.devices


@contextlib.contextmanager
def instead_of_what_is_here() -> Iterator[None]:
    """Programs traced inside are for NVIDIA GPUs, whatever this machine has."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    # jax asks the cuDNN library for its version while tracing. It is 1.1 GB, nothing else of it is
    # used before a program runs, and the card's description above names a version already.
    known, version = fused.check_cudnn_version, 10000 * CUDNN[0] + 100 * CUDNN[1] + CUDNN[2]
    fused.check_cudnn_version = lambda: version
    try:
        with target.absent("gpu"):
            yield
    finally:
        fused.check_cudnn_version = known
