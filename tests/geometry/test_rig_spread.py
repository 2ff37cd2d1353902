import json

import numpy as np
import pytest

from mouselift_jax.data.samples.camera_file import camera_record
from mouselift_jax.data.samples.rig_file import load_rig, save_rig
from mouselift_jax.errors import CalibrationError, LayoutError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.median_rig import aimed_at_origin, median_rig, slot_order
from mouselift_jax.geometry.rig import azimuth_elevation, rig_from_angles

AZIMUTHS = np.array([270.0, 225, 180, 90, 0, 315])


def turned_rigs(offsets):
    rigs = [rig_from_angles(AZIMUTHS + o, 20.0, 2.7, 549.0, 512) for o in offsets]
    return Camera(np.stack([r.K for r in rigs]), np.stack([r.c2w for r in rigs]), 512, 512)


def test_one_rig_has_no_spread():
    rig = median_rig(turned_rigs([0, 0, 0]))
    np.testing.assert_allclose(azimuth_elevation(rig.cameras.c2w)[0], AZIMUTHS, atol=1e-6)
    assert rig.spread_deg.max() < 1e-5 and rig.spread_px.max() < 1e-9 and rig.n_samples == 3


def test_spread_is_what_a_turn_does_to_the_picture():
    offsets = np.array([-4.0, -2, 0, 2, 4])
    rig = median_rig(turned_rigs(offsets))
    np.testing.assert_allclose(azimuth_elevation(rig.cameras.c2w)[0], AZIMUTHS, atol=0.05)
    at_elevation = np.sqrt((offsets**2).mean()) * np.cos(np.radians(20))
    np.testing.assert_allclose(rig.spread_deg, at_elevation, rtol=0.01)
    # A turn of 4 degrees moves a point 0.4 from the axis by 0.028: 5.7 px at distance 2.7.
    assert 1.0 < rig.spread_px.max() < 5.7


def test_cameras_that_aim_elsewhere_spread_less_once_they_look_at_the_origin():
    cameras = turned_rigs([0.0, 0.0, 0.0])
    K = np.array(cameras.K)
    K[0, :, 0, 2] += 20.0  # pictures shifted by their silhouettes
    K[2, :, 1, 2] -= 20.0
    shifted = Camera(K, cameras.c2w, 512, 512)
    assert median_rig(shifted).spread_px.max() > 10.0
    straight = aimed_at_origin(shifted)
    np.testing.assert_allclose(straight.project(np.zeros((1, 3)))[0], 256.0, atol=1e-9)
    assert median_rig(straight).spread_px.max() < 1e-9
    # what the positions of the cameras spread by stays
    turned = turned_rigs([-4.0, 0.0, 4.0])
    np.testing.assert_allclose(
        median_rig(aimed_at_origin(turned)).spread_px, median_rig(turned).spread_px, rtol=1e-6
    )


def test_slot_order_of_the_published_camera_file():
    assert slot_order(np.array([180, 225, 270, 315, 0, 90])).tolist() == [2, 1, 0, 5, 4, 3]


def test_rig_file_round_trip(tmp_path):
    rig = median_rig(turned_rigs([-3, 0, 3]))
    save_rig(tmp_path / "cameras.json", rig, source="a set")
    back, note = load_rig(tmp_path / "cameras.json")
    np.testing.assert_allclose(back.cameras.c2w, rig.cameras.c2w, atol=1e-12)
    np.testing.assert_allclose(back.spread_px, rig.spread_px, atol=1e-3)
    assert "3 samples" in note


def test_foreign_rig_file_is_put_in_slot_order(shared):
    rig, note = load_rig(shared / "data/facelift_sample/six_view_cameras.json")
    azimuths = azimuth_elevation(rig.cameras.c2w)[0]
    np.testing.assert_allclose(azimuths % 359.999, AZIMUTHS, atol=0.01)
    assert "does not say its slot order" in note and np.isnan(rig.spread_px).all()


def test_a_samples_own_cameras_keep_their_slots(tmp_path):
    """Slot 0 of a recording need not stand where the published rig's front does."""
    rig = rig_from_angles(40.0 - 60.0 * np.arange(6), 15.0, 2.7, 70.0, 64)
    record = camera_record("sample_000000", rig, range(6), [f"cam_{i}" for i in range(6)])
    (tmp_path / "opencv_cameras.json").write_text(json.dumps(record))
    found, note = load_rig(tmp_path / "opencv_cameras.json")
    np.testing.assert_allclose(found.cameras.c2w, rig.c2w, atol=1e-12)
    assert "clockwise already" in note


def test_missing_rig_file_and_cameras_that_look_elsewhere(tmp_path):
    with pytest.raises(LayoutError, match="no camera file"):
        load_rig(tmp_path / "cameras.json")
    cameras = turned_rigs([0, 0])
    c2w = cameras.c2w.copy()
    c2w[:, 0, :3, 3] += [3.0, 0, 0]
    save_rig(tmp_path / "cameras.json", median_rig(Camera(cameras.K, c2w, 512, 512)))
    with pytest.raises(CalibrationError, match="do not see the origin"):
        load_rig(tmp_path / "cameras.json")
