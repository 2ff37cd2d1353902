"""The CPU body of `warp`: the shared suite, threads, and the persistent compilation cache."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("warp")
from mouselift_jax.render import rasterize, warp_backend, warp_cpu  # noqa: E402
from tests.render.suite import RasterizerSuite, assert_close, differ, scene  # noqa: E402

ROOT = Path(__file__).parents[2]


class TestWarpCpu(RasterizerSuite):
    implementation = "warp"


_PROGRAM = """
import sys
import jax, numpy as np
from mouselift_jax.render import rasterize
from tests.render.suite import scene
sums = {}
for near in map(float, sys.argv[1:]):
    arrays = scene(n=60, views=1)
    out = jax.jit(lambda a: rasterize(**a, width=37, height=31, near=near, implementation="warp"))
    sums[near] = float(out(arrays).rgb.sum())
print(sorted(sums.items()))
"""


def test_only_the_missing_driver_is_left_unsaid(capfd):
    """Of what Warp's native code writes while it starts, one line does not concern a CPU."""
    with warp_backend._without_driver_warning():
        os.write(2, b"Warp CUDA warning: Could not find or load the NVIDIA CUDA driver. GPU\n")
        os.write(2, b"Warp CUDA error: Warp requires CUDA driver 13.0 or higher\nwithout an end")
    assert capfd.readouterr().err == (
        "Warp CUDA error: Warp requires CUDA driver 13.0 or higher\nwithout an end"
    )
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_a_start_on_a_cpu_is_quiet():
    program = "from mouselift_jax.render import warp_backend as w; print(w.problem('cpu'))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("None\n", "")


@pytest.mark.slow
def test_programs_from_the_persistent_cache_of_another_process(tmp_path):
    """What a process compiled is right in another that traces its calls in another order."""
    environment = dict(
        os.environ,
        JAX_COMPILATION_CACHE_DIR=str(tmp_path),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, *nears],
            env=environment, capture_output=True, text=True, check=True, cwd=ROOT,
        ).stdout
        for nears in (("0.2", "2.4"), ("2.4", "0.2"))
    ]  # fmt: skip
    assert found[0] == found[1] and len(set(found[0].split("), ("))) == 2
    values = [float(part.split(",")[1].strip(" )]\n")) for part in found[0].split("), (")]
    assert values[0] != values[1]


def test_threads_change_rounding_only(monkeypatch):
    """One and three threads: the same pictures to the bit, gradients to rounding."""
    arrays = scene(n=13_000, views=1)
    arrays["scales"] *= 0.2
    arrays["opacities"] *= 0.2
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("MOUSELIFT_RENDER_THREADS", threads)
        results.append(differ("warp")(arrays))
    (one, picture), (three, other) = results
    for a, b in zip(picture[:3], other[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    assert_close(three, one, 1e-5)


@pytest.mark.parametrize("room", [None, 1], ids=["room for all lists", "room for one view's"])
def test_lists_are_made_once_for_both_directions(room, monkeypatch):
    """A second backward pass, or one whose lists had to go, makes them again: the same bits."""
    if room:
        monkeypatch.setattr(warp_cpu, "_KEEP", room)
    shelf = warp_cpu._Shelf()
    monkeypatch.setattr(warp_cpu._frame(), "shelf", shelf)
    made, list_view = [], warp_cpu._Frame.list_view
    monkeypatch.setattr(
        warp_cpu._Frame, "list_view", lambda *args: made.append(args) or list_view(*args)
    )
    arrays = scene(views=3)

    @jax.jit
    def draw(arrays):
        return rasterize(**arrays, width=37, height=31, implementation="warp").rgb

    def after(make):
        result = jax.block_until_ready(make())
        return result, len(made)

    (rgb, pull), count = after(lambda: jax.vjp(draw, arrays))
    assert count == 3
    (first, once), (second, twice) = after(lambda: pull(rgb)), after(lambda: pull(rgb))
    assert (once, twice) == ((5, 8) if room else (3, 6))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not shelf.waiting if room is None else len(shelf.waiting) + len(shelf.done) == 1


def test_large_splats_in_many_tiles():
    """More tiles than a mask has bits, where lists are made by the exact test instead."""
    arrays = scene(n=12, views=1)
    arrays["scales"] *= 6
    arrays["K"] = arrays["K"] * np.float32([[4.0], [4.0], [1.0]])
    size = (148, 124)
    gradients, out = differ("warp", size)(arrays)
    expected, truth = differ("reference", size)(arrays)
    for a, b in zip(out[:3], truth[:3], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert_close(gradients, expected, 1e-4)
