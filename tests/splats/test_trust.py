"""How many cameras see each Gaussian: written, kept, shown."""

from __future__ import annotations

from argparse import ArgumentParser

import numpy as np
import pytest

from mouselift_jax.cli import view
from mouselift_jax.errors import LayoutError
from mouselift_jax.splats import load_ply, save_ply
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import load_extras
from mouselift_jax.splats.sh import C0
from mouselift_jax.splats.trust import FIELD, MODES, SCALE, SHIFT, mean_of, painted

SEEN, MOVED = np.array([0.0, 9, 1.5, 2, 7]), np.array([0.0, 9, 0.5, 1, 70])


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(5, 3)).astype(np.float32)
    means[1] = np.nan  # left out, and its camera count with it
    gaussians = Gaussians(
        means, rng.normal(size=(5, 4)), np.full((5, 3), -3.0), np.full(5, 2.0), np.zeros((5, 1, 3))
    )
    path = tmp_path / "splats.ply"
    assert save_ply(path, gaussians, extras={FIELD: SEEN, SHIFT: MOVED}) == 1
    return path


def test_the_property_comes_back_and_the_gaussians_are_as_without_it(file, tmp_path) -> None:
    assert list(load_extras(file)) == [FIELD, SHIFT]
    np.testing.assert_array_equal(load_extras(file)[FIELD], [0, 1.5, 2, 7])
    plain = tmp_path / "plain.ply"
    save_ply(plain, load_ply(file))
    assert load_extras(plain) == {}
    np.testing.assert_array_equal(load_ply(plain).means, load_ply(file).means)
    assert mean_of(FIELD, file, load_ply(file)) == pytest.approx(10.5 / 4)
    assert np.isnan(mean_of(FIELD, plain, load_ply(plain)))


def test_colours_say_how_many(file, tmp_path) -> None:
    rgb = 0.5 + C0 * painted(file).sh[:, 0]
    np.testing.assert_allclose(rgb[[0, 2, 3]], SCALE[[0, 2, 4]], atol=1e-6)
    np.testing.assert_allclose(rgb[1], (SCALE[1] + SCALE[2]) / 2, atol=1e-6)
    moved = 0.5 + C0 * painted(file, "shift").sh[:, 0]
    np.testing.assert_allclose(moved[[0, 2, 3]], SCALE[[4, 3, 0]], atol=1e-6)
    np.testing.assert_allclose(moved[1], (SCALE[3] + SCALE[4]) / 2, atol=1e-6)
    save_ply(tmp_path / "plain.ply", load_ply(file))
    for mode, said in (("cameras", "how many cameras"), ("shift", "how far each place moves")):
        with pytest.raises(LayoutError, match=f"does not say {said}"):
            painted(tmp_path / "plain.ply", mode)


def test_view_shows_it(file, tmp_path) -> None:
    pages = {}
    for colours in ("own", *MODES):
        pages[colours] = tmp_path / f"{colours}.html"
        args = ArgumentParser()
        view.add_arguments(args)
        command = [str(file), "--colours", colours, "--export-html", str(pages[colours])]
        assert view.run(args.parse_args(command)) == 0
    own, seen, moved = (pages[k].read_text() for k in ("own", "cameras", "shift"))
    assert "red 0" in seen and "red 4 or more" in moved
    assert "red 0" not in own and "red 4" not in own
