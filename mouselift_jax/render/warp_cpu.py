"""The CPU body of the `warp` implementation: native code that warp-lang compiles and launches.

`warp_cpu.h` holds the arithmetic and the plan of a call. Here are its kernels, the table of
addresses through which they see arrays, scratch memory that is kept between calls, and the threads:
a Warp launch runs on one core and leaves Python's lock, so each phase is launched once per worker.

Everything that differs between calls travels as an array or is read off shapes, never as a static
argument, so a compiled program from JAX's persistent cache is valid in any process.
"""

# No `from __future__ import annotations`: Warp reads the annotations of kernels as objects.
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import warp as wp

from mouselift_jax.render import constants as c
from mouselift_jax.render.types import no_type_check

TILE_HEIGHT = 16  # rows of a tile; the width is one vector, 16
_RECORD = 16  # floats of a projected Gaussian and of its gradient row: one cache line
_SLOTS = (
    "MEANS QUATS SCALES OPACITIES COLORS W2C INTRINSICS COUNT WIDTH HEIGHT COLS ROWS WORKERS "
    "NEAR_BITS RECORDS RECTS FLAGS TILE_COUNTS TILE_STARTS NEXT_TILE PAIRS SPARE LONGEST RGB LIGHT "
    "DEPTHS LAST G_RGB G_LIGHT G_DEPTHS ROW_GRADIENTS CAMERA_SUMS ACCUMULATE G_MEANS G_QUATS "
    "G_SCALES G_OPACITIES G_COLORS G_W2C G_INTRINSICS"
).split()
_SLOT = {name: k for k, name in enumerate(_SLOTS)}
_NUMBERS = {
    "FOV_CLAMP": c.FOV_CLAMP,
    "SLOPE_MAX": c.SLOPE_MAX,
    "QUAT_MIN": c.QUAT_MIN,
    "SIGMA_MAX": c.SIGMA_MAX,
    "DILATION": c.DILATION,
    "ALPHA_MIN": c.ALPHA_MIN,
    "LOG_INV_ALPHA_MIN": float(np.log(1 / c.ALPHA_MIN)),
    "ALPHA_MAX": c.ALPHA_MAX,
    "TRANSMITTANCE_MIN": c.TRANSMITTANCE_MIN,
}
_PHASES = ("project", "offsets", "fill", "forward", "backward", "pull", "pull_camera")


def _source() -> str:
    lines = [f"enum {{ {', '.join(_SLOTS)} }};", f"enum {{ TILE_HEIGHT = {TILE_HEIGHT} }};"]
    lines += [f"static constexpr float {k} = {v!r}f;" for k, v in _NUMBERS.items()]
    body = Path(__file__).with_name("warp_cpu.h").read_text(encoding="utf-8")
    switch = "".join(
        f"if (phase == {k}) Splat::{name}(table, worker);\n" for k, name in enumerate(_PHASES)
    )
    return "\n".join(lines) + "\n" + body + (
        "const u64* table = (const u64*)frame.data;\n" + switch
    )  # fmt: skip


@wp.func_native(_source())
@no_type_check
def _native(frame: wp.array(dtype=wp.uint64), phase: int, worker: int):  # noqa: ANN202
    ...


@wp.kernel(enable_backward=False)
@no_type_check
def _phase(frame: wp.array(dtype=wp.uint64), phase: int, worker: int):  # noqa: ANN202
    _native(frame, phase, worker)


def threads() -> int:
    """Cores that a call may use: `MOUSELIFT_RENDER_THREADS`, or those this process may run on."""
    wanted = os.environ.get("MOUSELIFT_RENDER_THREADS")
    if wanted:
        return max(1, min(64, int(wanted)))
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(16, ours or 1))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(63, thread_name_prefix="rasterizer")  # threads start when needed


class _Frame:
    """The table that native code reads, and scratch arrays that only ever grow."""

    def __init__(self) -> None:
        self.table = np.zeros(len(_SLOTS), np.uint64)
        self.shown = wp.array(
            ptr=self.table.ctypes.data, dtype=wp.uint64, shape=self.table.shape, device="cpu"
        )
        self.scratch: dict[str, np.ndarray] = {}
        self.workers = 1

    def put(self, **slots: int) -> None:
        """Set slots to addresses or numbers."""
        for name, value in slots.items():
            self.table[_SLOT[name]] = value

    def room(self, name: str, count: int, dtype: type, *, zero: bool = False) -> np.ndarray:
        """Scratch of at least `count` entries for a slot; `zero` when it is first made or grown."""
        held = self.scratch.get(name)
        if held is None or held.size < count or held.dtype != dtype:
            make = np.zeros if zero else np.empty
            raw = make(max(count, 1) * np.dtype(dtype).itemsize + 64, np.uint8)
            skip = -raw.ctypes.data % 64  # vectors are loaded from 64-byte boundaries
            held = raw[skip : skip + max(count, 1) * np.dtype(dtype).itemsize].view(dtype)
            self.scratch[name] = held
        self.put(**{name: held.ctypes.data})
        return held

    def run(self, phase: str, workers: int) -> None:
        """Run one phase on all workers and wait."""
        number = _PHASES.index(phase)

        def launch(worker: int) -> None:
            wp.launch(
                _phase, 1, inputs=[self.shown, number, worker], device="cpu", record_tape=False
            )

        waiting = [_pool().submit(launch, w) for w in range(1, workers)]
        launch(0)
        for job in waiting:
            job.result()

    def list_view(self, arrays: dict[str, wp.array], scene: int, view: int) -> int:
        """Project and list one view: everything both directions begin with. Returns the pairs."""
        n = arrays["means"].shape[1]
        views = arrays["w2c"].shape[1]
        slots = dict(MEANS=("means", 3), QUATS=("quats", 4), SCALES=("scales", 3),
                     OPACITIES=("opacities", 1), COLORS=("colors", 3))  # fmt: skip
        for slot, (name, width) in slots.items():
            self.put(**{slot: (arrays[name].ptr or 0) + 4 * scene * n * width})
        camera = scene * views + view
        self.put(W2C=arrays["w2c"].ptr + 64 * camera, INTRINSICS=arrays["K"].ptr + 36 * camera)
        self.run("project", self.workers)
        self.run("offsets", 1)
        tiles = int(self.table[_SLOT["COLS"]] * self.table[_SLOT["ROWS"]])
        starts = self.scratch["TILE_STARTS"]
        pairs = int(starts[tiles])
        longest = int(np.diff(starts[: tiles + 1]).max(initial=0))
        self.put(LONGEST=longest)
        # A quarter more than needed, so that a training run does not grow it at every step.
        for name, count in (("PAIRS", pairs), ("SPARE", longest * self.workers)):
            held = self.scratch.get(name)
            grow = held is None or held.size < count
            self.room(name, count + count // 4 if grow else count, np.uint64)
        self.run("fill", self.workers)
        return pairs

    def begin(self, arrays: dict[str, wp.array], near: float, size: tuple[int, int]) -> None:
        """Set what is the same for all views of a call."""
        n = arrays["means"].shape[1]
        height, width = size
        cols, rows = -(-width // 16), -(-height // TILE_HEIGHT)
        # Small scenes are over before a second thread has woken up.
        self.workers = max(1, min(threads(), n // 4096))
        near_bits = int(np.float32(near).view(np.uint32))
        self.put(COUNT=n, WIDTH=width, HEIGHT=height, COLS=cols, ROWS=rows,
                 WORKERS=self.workers, NEAR_BITS=near_bits)  # fmt: skip
        self.room("RECORDS", n * _RECORD, np.float32)
        self.room("RECTS", n * 2, np.uint64)
        self.room("TILE_COUNTS", self.workers * cols * rows, np.int32)
        self.room("TILE_STARTS", cols * rows + 1, np.int64)
        self.room("NEXT_TILE", 1, np.int32)
        self.room("FLAGS", n, np.uint8)[:n] = 0


@functools.cache
def _frame() -> _Frame:
    return _Frame()


_LOCK = threading.Lock()  # one frame, one call at a time; all cores work for that call
_INPUTS = ("means", "quats", "scales", "opacities", "colors", "w2c", "K")


@no_type_check
def _forward(
    means: wp.array(dtype=float, ndim=3),
    quats: wp.array(dtype=float, ndim=3),
    scales: wp.array(dtype=float, ndim=3),
    opacities: wp.array(dtype=float, ndim=2),
    colors: wp.array(dtype=float, ndim=3),
    w2c: wp.array(dtype=float, ndim=4),
    K: wp.array(dtype=float, ndim=4),
    near: wp.array(dtype=float, ndim=1),
    rgb: wp.array(dtype=wp.vec3, ndim=4),
    light: wp.array(dtype=float, ndim=4),
    depth: wp.array(dtype=float, ndim=4),
    last: wp.array(dtype=int, ndim=4),
    broken: wp.array(dtype=int, ndim=2),
    pairs: wp.array(dtype=int, ndim=2),
) -> None:
    arrays = dict(zip(_INPUTS, (means, quats, scales, opacities, colors, w2c, K), strict=True))
    scenes, views, height, width = light.shape
    with _LOCK:
        frame = _frame()
        for scene in range(scenes):
            frame.begin(arrays, float(near.numpy()[0]), (height, width))
            for view in range(views):
                count = frame.list_view(arrays, scene, view)
                at = (scene * views + view) * height * width * 4
                frame.put(RGB=rgb.ptr + 3 * at, LIGHT=light.ptr + at, DEPTHS=depth.ptr + at,
                          LAST=last.ptr + at)  # fmt: skip
                frame.run("forward", frame.workers)
                pairs.numpy()[scene, view] = min(count, 2**31 - 1)
                flags = frame.scratch["FLAGS"][: means.shape[1]]
                broken.numpy()[scene] = flags


@no_type_check
def _backward(
    means: wp.array(dtype=float, ndim=3),
    quats: wp.array(dtype=float, ndim=3),
    scales: wp.array(dtype=float, ndim=3),
    opacities: wp.array(dtype=float, ndim=2),
    colors: wp.array(dtype=float, ndim=3),
    w2c: wp.array(dtype=float, ndim=4),
    K: wp.array(dtype=float, ndim=4),
    near: wp.array(dtype=float, ndim=1),
    light: wp.array(dtype=float, ndim=4),
    last: wp.array(dtype=int, ndim=4),
    g_rgb: wp.array(dtype=wp.vec3, ndim=4),
    g_light: wp.array(dtype=float, ndim=4),
    g_depth: wp.array(dtype=float, ndim=4),
    g_means: wp.array(dtype=float, ndim=3),
    g_quats: wp.array(dtype=float, ndim=3),
    g_scales: wp.array(dtype=float, ndim=3),
    g_opacities: wp.array(dtype=float, ndim=2),
    g_colors: wp.array(dtype=float, ndim=3),
    g_w2c: wp.array(dtype=float, ndim=4),
    g_K: wp.array(dtype=float, ndim=4),  # [L,V,3,3], or empty if nobody asks for it
) -> None:
    arrays = dict(zip(_INPUTS, (means, quats, scales, opacities, colors, w2c, K), strict=True))
    scenes, views, height, width = light.shape
    n = means.shape[1]
    outputs = dict(G_MEANS=(g_means, 3), G_QUATS=(g_quats, 4), G_SCALES=(g_scales, 3),
                   G_OPACITIES=(g_opacities, 1), G_COLORS=(g_colors, 3))  # fmt: skip
    with _LOCK:
        frame = _frame()
        for scene in range(scenes):
            frame.begin(arrays, float(near.numpy()[0]), (height, width))
            # `pull` leaves the rows zero behind it, so they are cleared only when they are made.
            frame.room("ROW_GRADIENTS", frame.workers * n * _RECORD, np.float32, zero=True)
            frame.room("CAMERA_SUMS", frame.workers * 16, np.float64)
            for slot, (array, channels) in outputs.items():
                frame.put(**{slot: (array.ptr or 0) + 4 * scene * n * channels})
            for view in range(views):
                frame.list_view(arrays, scene, view)
                at = (scene * views + view) * height * width * 4
                frame.put(LIGHT=light.ptr + at, LAST=last.ptr + at, G_RGB=g_rgb.ptr + 3 * at,
                          G_LIGHT=g_light.ptr + at, G_DEPTHS=g_depth.ptr + at,
                          ACCUMULATE=int(view > 0),
                          G_W2C=g_w2c.ptr + 64 * (scene * views + view),
                          G_INTRINSICS=g_K.ptr + 36 * (scene * views + view) if g_K.size else 0,
                          )  # fmt: skip
                frame.run("backward", frame.workers)
                frame.run("pull", frame.workers)
                frame.run("pull_camera", 1)


@functools.cache
def _callables() -> tuple:
    return (
        wp.jax_callable(_forward, num_outputs=6, vmap_method=None),
        wp.jax_callable(_backward, num_outputs=7, vmap_method=None),
    )


def _call(function: object, arguments: tuple, dims: dict[str, tuple[int, ...]]) -> list[jax.Array]:
    # Warp numbers the calls it traces and writes the number into the program. No call has static
    # arguments, so all numbers mean the same; a constant one keeps programs equal across processes.
    function.call_id = 0
    return function(*arguments, output_dims=dims)


def forward(arrays: tuple, near: float, size: tuple[int, int]) -> list[jax.Array]:
    """Blend [L,V] views -> rgb, light, depth, last, broken [L,N], pairs [L,V]."""
    scenes, n = arrays[0].shape[:2]
    lead = (scenes, arrays[5].shape[1])
    dims = dict(rgb=(*lead, *size), light=(*lead, *size), depth=(*lead, *size),
                last=(*lead, *size), broken=(scenes, n), pairs=lead)  # fmt: skip
    return _call(_callables()[0], (*arrays, jnp.full(1, near, jnp.float32)), dims)


def backward(
    arrays: tuple, saved: tuple, cotangents: tuple, near: float, of_K: bool
) -> list[jax.Array]:
    """Gradients of means, quats, scales, opacities, colors, w2c and, with `of_K`, K."""
    dims = {f"g_{k}": a.shape for k, a in zip(_INPUTS, arrays, strict=True)}
    if not of_K:  # an empty output says so to `_backward`
        dims["g_K"] = (*arrays[6].shape[:2], 0, 3)
    arguments = (*arrays, jnp.full(1, near, jnp.float32), *saved, *cotangents)
    grads = _call(_callables()[1], arguments, dims)
    return grads if of_K else grads[:6]
