"""Keypoint files of other programs, written by the test, give the same numbers at +0.5."""

import pickle

import numpy as np
import pytest

from mouselift_jax.data.readers.keypoints import KEYPOINTS, read_keypoints
from mouselift_jax.errors import LayoutError

XY = np.random.default_rng(0).uniform(0, 500, (7, 3, 2))
LIKE = np.random.default_rng(1).uniform(0, 1, (7, 3))


def dlc(path, individuals=None, extra=False):
    """DeepLabCut's to_csv of its three- or four-line column index."""
    coords = ["x", "y", "likelihood"] + (["x_ens_median"] if extra else [])
    lines = [["scorer"] + ["net"] * 3 * len(coords)]
    if individuals:
        lines.append(["individuals", *np.repeat(individuals, len(coords)).tolist()])
    lines.append(["bodyparts", *np.repeat(["nose", "back", "tail"], len(coords)).tolist()])
    lines.append(["coords"] + coords * 3)
    for f in range(7):
        cells = []
        for m in range(3):
            x, y = map(repr, XY[f, m].tolist())
            cells += (
                ["", "", repr(float(LIKE[f, m]))]
                if (f, m) == (2, 1)
                else [x, y, repr(float(LIKE[f, m]))]
            )
            cells += ["9.5"] if extra else []
        lines.append([str(f), *cells])
    path.write_text("\n".join(map(",".join, lines)) + "\n")
    return path


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("individuals", [None, ["mouse"] * 3])
def test_deeplabcut_and_lightning_pose(tmp_path, extra, individuals):
    got = read_keypoints(dlc(tmp_path / "cam0DLC_resnet50.csv", individuals, extra))
    seen = np.ones((7, 3), bool)
    seen[2, 1] = False
    np.testing.assert_array_equal(got[seen], np.concatenate([XY + 0.5, LIKE[..., None]], -1)[seen])
    assert np.isnan(got[2, 1, :2]).all() and got[2, 1, 2] == 0


def test_several_animals_are_told(tmp_path):
    with pytest.raises(LayoutError, match="several animals"):
        read_keypoints(dlc(tmp_path / "a.csv", ["a", "a", "b"]))


@pytest.mark.parametrize("cut", [10, 60, 130, 200, 333])
def test_a_cut_table_is_one_error_or_fewer_frames(tmp_path, cut):
    path = dlc(tmp_path / "a.csv")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(LayoutError):
        read_keypoints(path)


def test_sleap_analysis(tmp_path):
    h5py = pytest.importorskip("h5py")
    tracks = np.full((2, 2, 3, 7), np.nan)  # one animal whose track broke at frame 4
    tracks[0, ..., :4], tracks[1, ..., 4:] = (
        XY.transpose(2, 1, 0)[..., :4],
        XY.transpose(2, 1, 0)[..., 4:],
    )
    with h5py.File(tmp_path / "a.analysis.h5", "w") as f:
        f["tracks"], f["node_names"] = tracks, np.array([b"nose", b"back", b"tail"])
        f["point_scores"] = np.broadcast_to(LIKE.T, (2, 3, 7))
    got = read_keypoints(tmp_path / "a.analysis.h5")
    np.testing.assert_array_equal(got, np.concatenate([XY + 0.5, LIKE[..., None]], -1))
    tracks[1] = tracks[0]
    with h5py.File(tmp_path / "b.h5", "w") as f:
        f["tracks"], f["node_names"] = tracks, np.array([b"nose"])
    with pytest.raises(LayoutError, match="several animals"):
        read_keypoints(tmp_path / "b.h5")


def test_the_real_mouse(shared):
    pytest.importorskip("h5py")
    files = sorted((shared / "data/real_mouse").rglob("*analysis*.h5"))
    assert files
    for file in files:
        points = read_keypoints(file)
        assert points.ndim == 3 and np.isfinite(points[..., :2]).any()
        assert np.nanmin(points[..., :2]) >= -1 and np.nanmax(points[..., :2]) < 1281


def test_another_program_is_named(tmp_path):
    (tmp_path / "a.slp").write_bytes(b"x")
    with pytest.raises(LayoutError, match="slp"):
        read_keypoints(tmp_path / "a.slp")
    assert all(f.tool and f.files and f.note for f in KEYPOINTS)


def dlc_h5(path, labels, rows=None):
    """What pandas' to_hdf(format="table") writes: a compound table, and a pickle of the names."""
    h5py = pytest.importorskip("h5py")
    table = np.concatenate([XY, LIKE[..., None]], -1).reshape(7, 9)
    index = np.arange(7) if rows is None else np.asarray(rows)
    values = np.zeros(len(index), [("index", "i8"), ("values_block_0", "f8", (9,))])
    values["index"], values["values_block_0"] = index, table[: len(index)]
    with h5py.File(path, "w") as file:
        group = file.create_group("df_with_missing")
        group.create_dataset("table", data=values)
        group.attrs["non_index_axes"] = np.bytes_(pickle.dumps([(1, labels)], protocol=0))
    return path


def _labels(*middle):
    return [("net", *middle, part, c) for part in ("nose", "back", "tail")
            for c in ("x", "y", "likelihood")]  # fmt: skip


@pytest.mark.parametrize("middle", [(), ("single",)])
def test_deeplabcut_h5(tmp_path, middle):
    got = read_keypoints(dlc_h5(tmp_path / "cam0DLC.h5", _labels(*middle)))
    np.testing.assert_array_equal(got, np.concatenate([XY + 0.5, LIKE[..., None]], -1))
    holes = read_keypoints(dlc_h5(tmp_path / "b.h5", _labels(), rows=[0, 3]))
    assert holes.shape == (4, 3, 3) and np.isnan(holes[1:3, :, 0]).all()


def test_deeplabcut_h5_refuses_what_is_no_text_and_several_animals(tmp_path):
    with pytest.raises(LayoutError, match="forbidden"):
        read_keypoints(dlc_h5(tmp_path / "a.h5", [np.float64(1.0)] * 9))
    two = [("net", "ab"[k > 4], *row[1:]) for k, row in enumerate(_labels())]
    with pytest.raises(LayoutError, match="several animals"):
        read_keypoints(dlc_h5(tmp_path / "b.h5", two))
