"""The CPU body of the `warp` implementation: native code that warp-lang compiles and launches.

`native/*.h` hold the arithmetic and, in `lanes.h`, the plan of a call. Here are its kernels, the
table of addresses through which they see arrays, scratch memory that is kept between calls, and the
threads: a Warp launch runs on one core and leaves Python's lock, so each phase is launched once per
worker.

Everything that differs between calls travels as an array or is read off shapes, never as a static
argument, so a compiled program from JAX's persistent cache is valid in any process.
"""

# No `from __future__ import annotations`: Warp reads the annotations of kernels as objects.
import functools
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import warp as wp

from mouselift_jax.render import constants as c
from mouselift_jax.render.types import no_type_check

SIDE = 16  # px of a tile
_RECORD = 16  # floats of a projected Gaussian and of its gradient row: one cache line
_SLOTS = (
    "MEANS QUATS SCALES OPACITIES COLORS W2C INTRINSICS COUNT WIDTH HEIGHT COLS ROWS WORKERS "
    "NEAR_BITS RECORDS RECTS FLAGS KEYS SPARE SORTED LISTED TILE_COUNTS TILE_STARTS NEXT_TILE "
    "PAIRS HITS RGB LIGHT DEPTHS LAST G_RGB G_LIGHT G_DEPTHS ROW_GRADIENTS CAMERA_SUMS ACCUMULATE "
    "G_MEANS G_QUATS G_SCALES G_OPACITIES G_COLORS G_W2C G_INTRINSICS"
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
    "LOG2_E": float(np.log2(np.e)),
    "ALPHA_MAX": c.ALPHA_MAX,
    "TRANSMITTANCE_MIN": c.TRANSMITTANCE_MIN,
}
_PHASES = (
    "project", "order", "count", "offsets", "fill", "forward", "reach", "backward", "pull",
    "pull_camera",
)  # fmt: skip
_ALONE = ("order", "offsets", "pull_camera")  # one worker does them
_NATIVE = ("lanes", "projection", "gradients", "lists", "blending")  # each builds on those before
# What a view's forward pass leaves for its backward pass is kept up to so many bytes in all.
_KEEP = 1 << 28


def _source() -> str:
    lines = [f"enum {{ {', '.join(_SLOTS)} }};"]
    lines += [f"static constexpr float {k} = {v!r}f;" for k, v in _NUMBERS.items()]
    folder = Path(__file__).with_name("native")
    lines += [(folder / f"{name}.h").read_text(encoding="utf-8") for name in _NATIVE]
    switch = "".join(
        f"if (phases >> {k} & 1) Splat::{name}(table, worker);\n" for k, name in enumerate(_PHASES)
    )
    return "\n".join(lines) + "\nconst u64* table = (const u64*)frame.data;\n" + switch


@wp.func_native(_source())
@no_type_check
def _native(frame: wp.array(dtype=wp.uint64), phases: int, worker: int):  # noqa: ANN202
    ...


@wp.kernel(enable_backward=False)
@no_type_check
def _run(frame: wp.array(dtype=wp.uint64), phases: int, worker: int):  # noqa: ANN202
    _native(frame, phases, worker)


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


class _Lists(dict[str, np.ndarray]):
    """What a view's backward pass needs of its forward pass, by slot."""

    SLOTS = ("RECORDS", "TILE_STARTS", "PAIRS", "HITS")

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(a.nbytes for a in self.values())


class _Shelf:
    """Lists of views that wait for their backward pass, and memory of those that are done.

    A view's lists are a function of the call's arguments, so nothing depends on finding them here:
    a backward pass that comes twice, or after too many others, makes them again.
    """

    def __init__(self) -> None:
        self.waiting: dict[tuple[int, int], _Lists] = {}  # the oldest first
        self.done: list[_Lists] = []
        self.ticket = (secrets.randbits(31), 0)  # no other process draws this number

    def empty(self) -> _Lists:
        """Memory to make lists in."""
        return self.done.pop() if self.done else _Lists()

    def keep(self, lists: _Lists) -> tuple[int, int]:
        """Put lists aside; returns the ticket that fetches them."""
        self.ticket = (self.ticket[0], (self.ticket[1] + 1) % (1 << 31))
        self.waiting[self.ticket] = lists
        self._trim()
        return self.ticket

    def fetch(self, ticket: tuple[int, int]) -> _Lists | None:
        """The lists of a ticket, if they are still here."""
        return self.waiting.pop(ticket, None)

    def give_back(self, lists: _Lists) -> None:
        """Leave memory for the next lists."""
        self.done.append(lists)
        self._trim()

    def _trim(self) -> None:
        size = sum(lists.size for lists in (*self.done, *self.waiting.values()))
        while size > _KEEP and len(self.done) + len(self.waiting) > 1:
            oldest = self.done.pop(0) if self.done else self.waiting.pop(next(iter(self.waiting)))
            size -= oldest.size


class _Frame:
    """The table that native code reads, and scratch arrays that only ever grow."""

    def __init__(self) -> None:
        self.shelf = _Shelf()
        self.lists = _Lists()
        self.table = np.zeros(len(_SLOTS), np.uint64)
        self.shown = wp.array(
            ptr=self.table.ctypes.data, dtype=wp.uint64, shape=self.table.shape, device="cpu"
        )
        self.scratch: dict[str, np.ndarray] = {}
        self.launches: dict[tuple[int, int], wp.Launch] = {}
        self.workers = 1

    def put(self, **slots: int) -> None:
        """Set slots to addresses or numbers."""
        for name, value in slots.items():
            self.table[_SLOT[name]] = value

    def room(self, name: str, count: int, dtype: type, *, zero: bool = False) -> np.ndarray:
        """Scratch of at least `count` entries for a slot; `zero` when it is first made or grown."""
        store = self.lists if name in _Lists.SLOTS else self.scratch
        held = store.get(name)
        if held is None or held.size < count or held.dtype != dtype:
            make = np.zeros if zero else np.empty
            raw = make(max(count, 1) * np.dtype(dtype).itemsize + 64, np.uint8)
            skip = -raw.ctypes.data % 64  # vectors are loaded from 64-byte boundaries
            held = raw[skip : skip + max(count, 1) * np.dtype(dtype).itemsize].view(dtype)
            store[name] = held
        self.put(**{name: held.ctypes.data})
        return held

    def run(self, *phases: str) -> None:
        """Run phases one after the other, each on all its workers, and wait."""
        bits = [1 << _PHASES.index(phase) for phase in phases]
        if self.workers == 1:  # then one launch does
            self._launch(sum(bits), 0)
            return
        for phase, bit in zip(phases, bits, strict=True):
            workers = 1 if phase in _ALONE else self.workers
            waiting = [_pool().submit(self._launch, bit, w) for w in range(1, workers)]
            self._launch(bit, 0)
            for job in waiting:
                job.result()

    def _launch(self, bits: int, worker: int) -> None:
        # Packing a launch's arguments takes as long as drawing a thousand Gaussians.
        launch = self.launches.get((bits, worker))
        if launch is None:
            launch = wp.launch(
                _run, 1, inputs=[self.shown, bits, worker], device="cpu", record_cmd=True
            )
            self.launches[bits, worker] = launch
        launch.launch()

    def see(self, arrays: dict[str, wp.array], scene: int, view: int) -> None:
        """Point at the Gaussians of a scene and the camera of a view."""
        n = arrays["means"].shape[1]
        views = arrays["w2c"].shape[1]
        slots = dict(MEANS=("means", 3), QUATS=("quats", 4), SCALES=("scales", 3),
                     OPACITIES=("opacities", 1), COLORS=("colors", 3))  # fmt: skip
        for slot, (name, width) in slots.items():
            self.put(**{slot: (arrays[name].ptr or 0) + 4 * scene * n * width})
        camera = scene * views + view
        self.put(W2C=arrays["w2c"].ptr + 64 * camera, INTRINSICS=arrays["K"].ptr + 36 * camera)

    def list_view(self, *then: str) -> int:
        """Project and list a view into `lists`, then run other phases. Returns the pairs."""
        n, cols, rows = (int(self.table[_SLOT[name]]) for name in ("COUNT", "COLS", "ROWS"))
        self.lists = self.shelf.empty()
        self.room("RECORDS", n * _RECORD, np.float32)
        starts = self.room("TILE_STARTS", cols * rows + 1, np.int64)
        self.run("project", "order", "count", "offsets")
        pairs = int(starts[cols * rows])
        held = self.lists.get("PAIRS")
        # A quarter more than needed, so that a training run does not grow it at every step.
        grow = held is None or held.size < pairs
        self.room("PAIRS", pairs + pairs // 4 if grow else pairs, np.uint32)
        self.room("HITS", pairs + pairs // 4 if grow else pairs, np.uint16)
        self.run("fill", *then)
        return pairs

    def fetch(self, ticket: tuple[int, int]) -> None:
        """Point at the lists that the forward pass of a view left, or make them again."""
        kept = self.shelf.fetch(ticket)
        if kept is None:
            self.list_view("reach")
            return
        self.lists = kept
        self.put(**{name: array.ctypes.data for name, array in kept.items()})

    def begin(self, arrays: dict[str, wp.array], near: float, size: tuple[int, int]) -> None:
        """Set what is the same for all views of a call."""
        n = arrays["means"].shape[1]
        height, width = size
        cols, rows = -(-width // SIDE), -(-height // SIDE)
        # Small scenes are over before a second thread has woken up.
        self.workers = max(1, min(threads(), n // 4096))
        near_bits = int(np.float32(near).view(np.uint32))
        self.put(COUNT=n, WIDTH=width, HEIGHT=height, COLS=cols, ROWS=rows,
                 WORKERS=self.workers, NEAR_BITS=near_bits)  # fmt: skip
        self.room("RECTS", n * 2, np.uint64)
        self.room("KEYS", n, np.uint64)
        self.room("SPARE", n, np.uint64)
        self.room("TILE_COUNTS", self.workers * cols * rows, np.int32)
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
    tickets: wp.array(dtype=int, ndim=3),  # [L,V,2], or empty if no backward pass will come
) -> None:
    arrays = dict(zip(_INPUTS, (means, quats, scales, opacities, colors, w2c, K), strict=True))
    scenes, views, height, width = light.shape
    with _LOCK:
        frame = _frame()
        for scene in range(scenes):
            frame.begin(arrays, float(near.numpy()[0]), (height, width))
            for view in range(views):
                frame.see(arrays, scene, view)
                at = (scene * views + view) * height * width * 4
                frame.put(RGB=rgb.ptr + 3 * at, LIGHT=light.ptr + at, DEPTHS=depth.ptr + at,
                          LAST=last.ptr + at)  # fmt: skip
                count = frame.list_view("forward")
                pairs.numpy()[scene, view] = min(count, 2**31 - 1)
                if tickets.size:
                    tickets.numpy()[scene, view] = frame.shelf.keep(frame.lists)
                else:
                    frame.shelf.give_back(frame.lists)
            broken.numpy()[scene] = frame.scratch["FLAGS"][: means.shape[1]]


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
    tickets: wp.array(dtype=int, ndim=3),
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
                frame.see(arrays, scene, view)
                frame.fetch(tuple(tickets.numpy()[scene, view].tolist()))
                at = (scene * views + view) * height * width * 4
                frame.put(LIGHT=light.ptr + at, LAST=last.ptr + at, G_RGB=g_rgb.ptr + 3 * at,
                          G_LIGHT=g_light.ptr + at, G_DEPTHS=g_depth.ptr + at,
                          ACCUMULATE=int(view > 0),
                          G_W2C=g_w2c.ptr + 64 * (scene * views + view),
                          G_INTRINSICS=g_K.ptr + 36 * (scene * views + view) if g_K.size else 0,
                          )  # fmt: skip
                frame.run("backward", "pull", "pull_camera")
                frame.shelf.give_back(frame.lists)


@functools.cache
def _callables() -> tuple:
    return (
        wp.jax_callable(_forward, num_outputs=7, vmap_method=None),
        wp.jax_callable(_backward, num_outputs=7, vmap_method=None),
    )


def _call(function: object, arguments: tuple, dims: dict[str, tuple[int, ...]]) -> list[jax.Array]:
    # Warp numbers the calls it traces and writes the number into the program. No call has static
    # arguments, so all numbers mean the same; a constant one keeps programs equal across processes.
    function.call_id = 0
    return function(*arguments, output_dims=dims)


def forward(arrays: tuple, near: float, size: tuple[int, int], *, keep: bool) -> list[jax.Array]:
    """Blend [L,V] views -> rgb, light, depth, last, broken [L,N], pairs [L,V], tickets [L,V,2].

    With `keep`, lists are kept for the backward pass.
    """
    scenes, n = arrays[0].shape[:2]
    lead = (scenes, arrays[5].shape[1])
    dims = dict(rgb=(*lead, *size), light=(*lead, *size), depth=(*lead, *size),
                last=(*lead, *size), broken=(scenes, n), pairs=lead,
                tickets=(*lead, 2 * keep))  # fmt: skip
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
