"""MATLAB files saved with -v7.3, written as MATLAB lays them out, read as those of -v7 are."""

import numpy as np
import pytest
from scipy.io import savemat

from mouselift_jax.data.readers import read_calibration
from mouselift_jax.errors import LayoutError

h5py = pytest.importorskip("h5py")
RNG = np.random.default_rng(0)
FIELDS = ("K", "r", "t", "RDistort", "TDistort")


def cameras():
    out = []
    for i in range(3):
        K = np.array([[500.0 + i, 0, 320.5], [0, 510.0 + i, 240.5], [0, 0, 1]])
        r = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
        values = (K.T, r * np.linalg.det(r), RNG.normal(size=(1, 3)), np.array([[0.1, -0.02]]),
                  np.zeros((1, 2)))  # fmt: skip
        out.append(dict(zip(FIELDS, values, strict=True)))
    return out


def put(file, name, value):
    """A number matrix or text, as MATLAB stores it: columns first, text as 16-bit codes."""
    if isinstance(value, str):
        data = file.create_dataset(name, data=np.array([[ord(c)] for c in value], np.uint16))
        data.attrs["MATLAB_class"] = np.bytes_("char")
    else:
        data = file.create_dataset(name, data=np.asarray(value).T)
        data.attrs["MATLAB_class"] = np.bytes_("double")
    return data


def v73(path, rows, names, *, as_struct_array=False):
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = []
        for i, row in enumerate(rows):
            group = file.create_group(f"#refs#/c{i}")
            for key, value in row.items():
                put(group, key, value)
            refs.append(group.ref)
        if as_struct_array:
            group = file.create_group("params")
            for key in FIELDS:
                data = [[file[f"#refs#/c{i}"][key].ref] for i in range(len(rows))]
                group.create_dataset(key, data=np.array(data, h5py.ref_dtype))
        else:
            cell = file.create_dataset("params", data=np.array([refs], h5py.ref_dtype))
            cell.attrs["MATLAB_class"] = np.bytes_("cell")
        texts = [put(file, f"#refs#/n{i}", n).ref for i, n in enumerate(names)]
        cell = file.create_dataset("camnames", data=np.array([[t] for t in texts], h5py.ref_dtype))
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
    data = bytearray(path.read_bytes())
    data[:19] = b"MATLAB 7.3 MAT-file"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("as_struct_array", [False, True])
def test_the_same_cameras_as_of_version_7(tmp_path, as_struct_array):
    rows, names = cameras(), ["Camera1", "Camera2", "Camera3"]
    cells = np.empty((3, 1), object)
    cells[:, 0] = rows
    old = tmp_path / "old_dannce.mat"
    savemat(old, {"params": cells, "camnames": np.array(names, object)})
    new = v73(tmp_path / "new_dannce.mat", rows, names, as_struct_array=as_struct_array)
    a, b = read_calibration(old), read_calibration(new)
    assert [c.name for c in b.cameras] == names and a.pixel_shift == b.pixel_shift == -0.5
    for one, other in zip(a.cameras, b.cameras, strict=True):
        for key in ("K", "R", "T", "distortion"):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


def test_damage_is_one_error(tmp_path):
    path = v73(tmp_path / "a_dannce.mat", cameras(), ["a", "b", "c"])
    data = path.read_bytes()
    for k in range(120):
        broken = bytearray(data[: int(RNG.integers(600, len(data)))] if k % 2 else data)
        broken[int(RNG.integers(512, len(broken)))] = int(RNG.integers(256))
        path.write_bytes(broken)
        try:
            read_calibration(path)
        except LayoutError:
            continue
