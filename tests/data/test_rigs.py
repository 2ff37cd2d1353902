"""The canonical rig that travels with the project."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mouselift_jax.data.samples.rig_file import load_rig, named_rig, rig_words
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.geometry.rig import azimuth_elevation

FILE = Path(__file__).resolve().parents[2] / "data/rigs/canonical.json"


def test_a_rig_that_lacks_its_spread_is_one_error(tmp_path):
    record = json.loads(FILE.read_text())
    record["slots"] = "clockwise from slot 0"
    record.pop("spread_px", None)
    (tmp_path / "cameras.json").write_text(json.dumps(record))
    with pytest.raises(LayoutError, match="cameras.json is incomplete"):
        load_rig(tmp_path / "cameras.json")


def test_canonical_rig():
    rig, _ = load_rig(FILE)
    azimuth, elevation = azimuth_elevation(rig.cameras.c2w)
    np.testing.assert_allclose(azimuth, [270, 225, 180, 90, 0, 315], atol=1e-6)
    np.testing.assert_allclose(elevation, 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rig.cameras.center, axis=-1), 2.7)
    np.testing.assert_allclose(rig.cameras.K[:, 0, 0], 256 / np.tan(np.radians(25)), rtol=1e-6)
    xy, depth = rig.cameras.project(np.array([[0.0, 0.0, 0.5]]))
    assert (xy[..., 1] < 256).all() and (depth > 0).all()  # z is up in every picture


def test_canonical_rig_is_the_published_one(shared):
    """The published file lists the cameras in another order: [2, 1, 0, 5, 4, 3]."""
    record = json.loads((shared / "data/facelift_sample/six_view_cameras.json").read_text())
    published = np.array([f["w2c"] for f in record["frames"]])[[2, 1, 0, 5, 4, 3]]
    rig, _ = load_rig(FILE)
    np.testing.assert_allclose(rig.cameras.w2c, published, atol=1e-5)


def test_a_rig_is_named_by_its_cameras_not_by_its_file():
    rig, _ = load_rig(FILE)
    assert rig_words(rig).startswith("the canonical rig (cameras within 0.0 px")
    small = dataclasses.replace(rig, cameras=rig.cameras.resized(64, 64)[0], spread_px=np.zeros(6))
    assert "the canonical rig (" in rig_words(small) and "spread 0.0 px" in rig_words(small)
    K = rig.cameras.K.copy()
    K[:, :2, :2] *= 1.5
    longer = dataclasses.replace(rig, cameras=dataclasses.replace(rig.cameras, K=K))
    assert "the canonical rig, focal lengths times 1.50" in rig_words(longer)
    order = dataclasses.replace(rig, cameras=rig.cameras[np.array([1, 2, 3, 4, 5, 0])])
    assert rig_words(order).startswith("a rig of its own: azimuth/elevation 225/0, 180/")
    with pytest.raises(ConfigError, match="did you mean 'canonical'"):
        named_rig("canonial")
