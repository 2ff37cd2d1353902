"""The live viewer with a film: one set of splats moved on, tracks, colours that say something."""

import dataclasses

import numpy as np
import pytest

from mouselift_jax.geometry.rig import turntable
from mouselift_jax.report.live import LiveViewer
from mouselift_jax.report.scene import Moment, Scene
from tests.report.test_reels import rolling

pytest.importorskip("viser", reason="viser is not installed")


@pytest.fixture
def live():
    reel, cameras = rolling(frames=5, cut=4), turntable(2, radius=3.0, size=32)
    grey = [np.full((32, 32, 3), 90, np.uint8)] * 2
    moments = [
        Moment(reel.label(i), None, lambda: (cameras, grey, ["a", "b"]),
               lambda i=i: reel.gaussians(i))
        for i in range(5)
    ]  # fmt: skip
    viewer = LiveViewer(Scene("film", moments, 0.01, reel), port=0)
    yield viewer
    viewer.stop()


def lines(viewer):
    return [h for h in viewer._handles if "tracks" in h.name]


def test_a_film_moves_one_set_of_splats_and_draws_its_tracks(live):
    first = live._set[0]
    assert lines(live) == []  # nothing has moved yet
    live.show(3)
    assert live._set[0] is first  # set_gaussians, not a new node
    ((line),) = lines(live)
    assert line.points.shape == (3 * 50, 2, 3)
    reel = live.scene.reel
    ends = {tuple(np.round(p, 4)) for p in line.points[-50:, 1]}
    means = {tuple(np.round(p, 4)) for p in np.asarray(reel.gaussians(3).means)}
    assert ends <= means
    live.tracks.value = False
    assert lines(live) == []
    live.tracks.value = True
    live.show(4)  # another set: its tracks begin here
    assert lines(live) == []


def test_colours_are_chosen_and_explained(live):
    live.show(2)
    own = live._set[0].rgbs.copy()
    for kind, said in (("speed", "mm/s"), ("cameras", "red 0"), ("error", "pictures")):
        live.colours.value = kind
        assert said in live.legend.content and np.abs(live._set[0].rgbs - own).mean() > 3
    live.colours.value = "own"
    np.testing.assert_array_equal(live._set[0].rgbs, own)
    live.scene = dataclasses.replace(
        live.scene, reel=dataclasses.replace(live.scene.reel, seen=lambda s: None)
    )
    live.colours.value = "cameras"
    assert "not known" in live.legend.content
