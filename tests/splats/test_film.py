"""A film on disk: parts of some frames, one set and one order in each segment."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mouselift_jax.errors import LayoutError
from mouselift_jax.splats.film import PART, Film, Part


def frame(number: int, segment: int = 0, n: int = 5) -> Part:
    rng = np.random.default_rng(number)
    quats = np.tile(np.float32([1, 0, 0, 0]), (1, n, 1))
    return Part(
        np.array([number]), np.array([segment]), rng.normal(size=(1, n, 3)).astype(np.float32),
        quats, np.zeros((n, 3), np.float32), np.ones(n, np.float32),
        np.zeros((1, n, 1, 3), np.float32), np.array([0.9]), np.array([30.0]),
    )  # fmt: skip


def test_frames_come_back_in_the_order_of_time_whatever_order_they_were_added_in(tmp_path) -> None:
    film = Film.begin(tmp_path / "film", {"segments": []})
    places = [5, 6, PART + 1, 4, 0]
    for place in places:
        film.add(place, frame(10 * place, segment=int(place > PART)))
    film.add(5, frame(50))  # once more: it replaces
    again = Film.open(tmp_path)
    assert [list(p.frames) for p in again.parts()] == [[0, 40, 50, 60], [10 * (PART + 1)]]
    part = next(again.parts())
    assert np.array_equal(part.gaussians(2).means, frame(50).means[0])
    assert np.array_equal(again.find(4, 40).means, frame(40).means)
    assert again.find(7, 70) is None


def test_what_is_no_film_or_a_later_one_says_so(tmp_path) -> None:
    with pytest.raises(LayoutError, match="no film here"):
        Film.open(tmp_path)
    film = Film.begin(tmp_path / "film", {})
    (film.folder / "film.json").write_text(json.dumps({"version": 2}))
    with pytest.raises(LayoutError, match="another version"):
        Film.open(tmp_path)
