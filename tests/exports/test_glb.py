import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from mouselift_jax.__main__ import main
from mouselift_jax.errors import LayoutError
from mouselift_jax.exports.glb import EXTENSION, save_glb
from mouselift_jax.splats.gaussians import Gaussians, quat_to_rotation
from mouselift_jax.splats.ply import AXES, save_ply
from mouselift_jax.splats.sh import C0

WIDTH = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
KIND = {5126: np.float32, 5121: np.uint8}


def cloud(degree=3, n=40):
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(size=(n, 3)), rng.normal(size=(n, 4)), rng.normal(-3, 0.5, (n, 3)),
        rng.normal(size=n), rng.normal(0, 0.3, (n, (degree + 1) ** 2, 3)),
    )  # fmt: skip
    return Gaussians(*(a.astype(np.float32) for a in arrays))


def read(path):
    """Attributes, the extension's own words and extras, by another program's reader."""
    pygltflib = pytest.importorskip("pygltflib", reason="a reader of glTF that is not ours")
    file = pygltflib.GLTF2().load(str(path))
    data, (primitive,) = file.binary_blob(), file.meshes[0].primitives
    out = {}
    for name, index in vars(primitive.attributes).items():
        if index is None:
            continue
        accessor = file.accessors[index]
        view = file.bufferViews[accessor.bufferView]
        start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
        width = WIDTH[accessor.type]
        values = np.frombuffer(data, KIND[accessor.componentType], accessor.count * width, start)
        out[name.removeprefix(f"{EXTENSION}:")] = values.reshape(accessor.count, width)
    return out, primitive.extensions[EXTENSION], file.asset.extras


def test_another_reader_finds_every_number(tmp_path):
    splats = cloud(degree=1)
    assert save_glb(tmp_path / "a.glb", splats, {"units_per_mm": 0.02}) == 0
    found, words, extras = read(tmp_path / "a.glb")
    assert words["kernel"] == "ellipse" and words["colorSpace"] == "srgb_rec709_display"
    assert extras == {"units_per_mm": 0.02}
    shown = splats.activate()
    np.testing.assert_array_equal(found["POSITION"], splats.means)
    np.testing.assert_allclose(found["SCALE"], np.exp(splats.log_scales), rtol=1e-6)
    np.testing.assert_allclose(found["OPACITY"][:, 0], shown.opacities, rtol=1e-6)
    np.testing.assert_allclose(found["ROTATION"][:, [3, 0, 1, 2]], shown.quats, atol=1e-6)
    coefs = ["SH_DEGREE_0_COEF_0", *(f"SH_DEGREE_1_COEF_{m}" for m in range(3))]
    np.testing.assert_array_equal(np.stack([found[c] for c in coefs], 1), splats.sh)
    grey = np.clip(splats.sh[:, 0] * C0 + 0.5, 0, 1)
    np.testing.assert_allclose(found["COLOR_0"][:, :3] / 255, grey, atol=0.5 / 255 + 1e-6)


def test_the_command_writes_y_up_and_says_its_unit(tmp_path, capsys):
    splats = cloud(degree=0)
    save_ply(tmp_path / "in.ply", splats, scene_scale=0.02)
    command = ["export", "--to=glb", str(tmp_path / "in.ply"), str(tmp_path / "out.glb")]
    assert main([*command, "--scale=m"]) == 0
    assert "axes opengl" in capsys.readouterr().out
    found, _, extras = read(tmp_path / "out.glb")
    x, y, z = splats.means.T / 20.0  # 0.02 units a mm: 20 a metre
    np.testing.assert_allclose(found["POSITION"], np.stack([x, z, -y], 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["SCALE"], np.exp(splats.log_scales) / 20, rtol=1e-5)
    assert extras["units_per_mm"] == pytest.approx(1e-3)


def test_an_empty_set_is_refused_because_gltf_has_none(tmp_path):
    with pytest.raises(LayoutError, match="empty set"):
        save_glb(tmp_path / "a.glb", cloud()[np.zeros(40, bool)])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npx") is None, reason="npx is not installed")
def test_numbers_are_those_of_splat_transform(tmp_path):
    """It writes .glb but does not read it (findings/): its file and ours hold equal numbers."""
    splats = cloud()
    save_ply(tmp_path / "in.ply", splats, axes="3dgs")
    try:
        run = subprocess.run(
            ["npx", "--yes", "@playcanvas/splat-transform@3.7.0", "in.ply", "theirs.glb"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip("npx fetched nothing within two minutes")
    if re.search(r"^npm (error|ERR!)", run.stderr, re.MULTILINE):
        pytest.skip(f"npx could not fetch it: {run.stderr[-200:]}")
    assert run.returncode == 0 and (tmp_path / "theirs.glb").exists(), run.stderr or run.stdout
    # It turns what 3DGS programs write (y down) by half a turn about z; we, about x.
    turned = splats.turned(AXES["opengl"][0]).turned(np.diag([-1.0, 1.0, -1.0]))
    save_glb(tmp_path / "ours.glb", turned)
    ours, words, _ = read(tmp_path / "ours.glb")
    theirs, their_words, _ = read(tmp_path / "theirs.glb")
    assert words == their_words and list(ours) == list(theirs)
    for name in ours:
        a, b = (
            quat_to_rotation(x[name].astype(float)[:, [3, 0, 1, 2]]) if name == "ROTATION"
            else x[name] for x in (ours, theirs)
        )  # fmt: skip
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=name)


def test_the_file_is_whole_for_a_reader_of_the_container(tmp_path):
    save_glb(tmp_path / "a.glb", cloud(degree=0, n=3))
    data = (tmp_path / "a.glb").read_bytes()
    assert data[:4] == b"glTF" and int.from_bytes(data[8:12], "little") == len(data)
    n = int.from_bytes(data[12:16], "little")
    gltf = json.loads(data[20 : 20 + n])
    for view in gltf["bufferViews"]:
        assert view["byteOffset"] % 4 == 0
        assert view["byteOffset"] + view["byteLength"] <= gltf["buffers"][0]["byteLength"]
