"""Points in space, as anipose and sleap-anipose write them, and what a recording makes of them."""

import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mouselift_jax.data.check.recording import check_recording
from mouselift_jax.data.readers.space import POINTS, are_points, read_points
from mouselift_jax.data.recordings.inspection import inspect_recording, open_recording
from mouselift_jax.data.synthetic import write_recording
from mouselift_jax.errors import LayoutError, MissingExtraError

RNG = np.random.default_rng(0)
XYZ, SCORE = RNG.normal(size=(7, 3, 3)) * 50, RNG.uniform(size=(7, 3))
M = Rotation.from_euler("xyz", [10, 50, -120], degrees=True).as_matrix()
CENTRE = np.array([3.0, -20.0, 7.0])


def anipose(path, xyz=XYZ, score=SCORE, axes=True, frames=None):
    """What triangulate.py of anipose 1.1 writes: X M^T - center, in columns of each body part."""
    parts = [f"part_{m}" for m in range(xyz.shape[1])]
    head = [f"{p}_{w}" for p in parts for w in ("x", "y", "z", "error", "ncams", "score")]
    moved = xyz @ M.T - CENTRE if axes else xyz
    more = [*M.ravel().tolist(), *CENTRE.tolist()] if axes else []
    if axes:
        head += [f"M_{i}{j}" for i in range(3) for j in range(3)]
        head += [f"center_{i}" for i in range(3)]
    lines = [",".join([*head, "fnum"])]
    for t in range(len(xyz)):
        cells = [c for m in range(len(parts)) for c in (*moved[t, m], 1.5, 4, score[t, m])]
        row = ["" if np.isnan(c) else repr(float(c)) for c in (*cells, *more)]
        lines.append(",".join([*row, str(t if frames is None else frames[t])]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("axes", [True, False])
def test_anipose(tmp_path, axes):
    xyz = XYZ.copy()
    xyz[2, 1] = np.nan
    got = read_points(anipose(tmp_path / "a.csv", xyz, axes=axes))
    np.testing.assert_allclose(got[..., :3], xyz, atol=1e-12)
    assert got[2, 1, 3] == 0
    np.testing.assert_array_equal(got[3:, :, 3], SCORE[3:])
    later = read_points(anipose(tmp_path / "b.csv", frames=[2, 3, 4, 5, 6, 7, 9]))
    assert later.shape == (10, 3, 4) and np.isnan(later[[0, 1, 8], :, :3]).all()
    np.testing.assert_allclose(later[9, :, :3], XYZ[6], atol=1e-12)


def test_damaged_tables_are_one_error(tmp_path):
    good = anipose(tmp_path / "a.csv").read_text()
    for bad in (good.replace("M_22", "M_33"), good + "1,2\n", good[:300], good.replace("1.5", "x"),
                good.splitlines()[0], good.rstrip("6\n") + "-6\n"):  # fmt: skip
        (tmp_path / "b.csv").write_text(bad)
        with pytest.raises(LayoutError) as error:
            read_points(tmp_path / "b.csv")
        assert error.value.fix


def test_sleap_anipose(tmp_path, shared):
    h5py = pytest.importorskip("h5py")
    real = read_points(shared / "data/real_mouse/points3d.h5")
    assert real.shape == (120, 15, 4) and np.isfinite(real[..., :3]).mean() > 0.5
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["tracks"] = np.zeros((4, 2, 5, 3))
    with pytest.raises(LayoutError, match="several animals"):
        read_points(tmp_path / "two.h5")
    assert all(f.tool and f.files and f.note for f in POINTS)


def test_without_h5py_other_files_are_not_asked(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    for name in ("points3d.h5", "metadata.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["tracks"] = np.zeros((4, 1, 5, 3))
    assert are_points(tmp_path / "metadata.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert are_points(tmp_path / "points3d.h5") and not are_points(tmp_path / "metadata.h5")
    with pytest.raises(MissingExtraError, match="h5py"):
        read_points(tmp_path / "points3d.h5")


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A recording whose keypoints are one table of points in space; and these."""
    path = tmp_path_factory.mktemp("space") / "rec"
    write_recording(path, frames=4, size=(144, 128), n_heldout=0, workers=1)
    with np.load(next(path.rglob("truth.npz"))) as truth:
        points = truth["keypoints"][:4]
    for file in path.glob("keypoints2d_undist/*"):
        file.unlink()
    (path / "pose-3d").mkdir()
    anipose(path / "pose-3d/rec.csv", points, np.ones(points.shape[:2]))
    return path, points


def test_a_recording_sees_them_with_its_cameras(walk):
    path, points = walk
    recording = open_recording(path)
    assert recording.projected and recording.evidence is None
    for camera, seen in zip(recording.cameras, recording.keypoints, strict=True):
        np.testing.assert_allclose(seen[..., :2], camera.project(points)[0], atol=1e-6)
    result = check_recording(path)
    assert result.clean and "keypoint_epipolar_px" not in result.measures


def test_points_of_another_place_or_of_two_files_are_told(walk, tmp_path):
    path, points = walk
    for part in ("videos_undist", "simpleclick_undist", "new_cam.pkl"):
        (tmp_path / part).symlink_to(path / part)
    ones = np.ones(points.shape[:2])
    anipose(tmp_path / "moved.csv", points + [60.0, 0, 0], ones)
    (finding,) = check_recording(tmp_path).findings
    assert finding.code == "keypoints_inconsistent" and "fall on the masks" in finding.message
    anipose(tmp_path / "other.csv", points, ones)
    recording, findings = inspect_recording(tmp_path)
    assert recording.keypoints is None and "none of them used" in findings[0].message
