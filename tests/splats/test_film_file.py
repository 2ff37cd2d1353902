"""A film in one file, read by what docs/film_format.md says and nothing else."""

import io
import json
import zipfile

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mouselift_jax.errors import LayoutError, ShapeError
from mouselift_jax.geometry.similarity import Similarity
from mouselift_jax.splats.film_file import load_film_file, save_film_file
from mouselift_jax.splats.gaussians import Gaussians, quat_to_rotation
from mouselift_jax.splats.ply import save_ply
from mouselift_jax.splats.reel import Reel

SCALE = 0.01  # film units per mm
N, FRAMES, CUT = 3000, 24, 20  # a second set begins at CUT


def walking(n=N, frames=FRAMES, cut=CUT, seed=0):
    """A body 90 mm long that walks, turns 6 degrees a frame, bends and breathes."""
    rng = np.random.default_rng(seed)
    rest = rng.normal(size=(n, 3))
    rest = rest / np.linalg.norm(rest, axis=1, keepdims=True) * [0.45, 0.15, 0.14]
    rest = rest[np.lexsort(np.floor(rest / 0.02).T)].astype(np.float32)
    turn = Rotation.from_rotvec(rng.normal(size=(n, 3)))
    size = np.log(rng.uniform(0.005, 0.02, (n, 3))).astype(np.float32)
    opacity, sh = rng.normal(3, 1, n).astype(np.float32), rng.normal(size=(n, 1, 3))

    def gaussians(i):
        own = Rotation.from_rotvec([0, 0, 0.1 * i])
        bend = Rotation.from_rotvec(np.outer(rest[:, 0], [0, 0, 0.5 * np.sin(0.4 * i)]))
        means = (own * bend).apply(rest * (1 + 0.05 * np.sin(i))) + [0.08 * i, 0.02 * i, 0.2]
        return Gaussians(
            means.astype(np.float32),
            (own * bend * turn).as_quat(scalar_first=True).astype(np.float32),
            size + np.float32(i >= cut), opacity, (sh * (1 + 0.01 * np.sin(i))).astype(np.float32),
        )  # fmt: skip

    at = np.arange(frames)
    world = Similarity(
        1 / SCALE, Rotation.from_rotvec([0, 0, 1]).as_matrix(), np.array([50, 40, 0])
    )
    return Reel(
        2 * at, (at >= cut).astype(int), at / 15, gaussians,
        lambda s: rng.uniform(0, 6, n), SCALE, world,
    )  # fmt: skip


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path, reel = tmp_path_factory.mktemp("film") / "mouse.film", walking()
    save_film_file(path, reel)
    return path, reel


# --- a reader written from docs/film_format.md alone ----------------------------------------------


def quaternion_product(a, b):
    w, x, y, z = np.moveaxis(a, -1, 0)
    W, X, Y, Z = np.moveaxis(b, -1, 0)
    return np.stack([w * W - x * X - y * Y - z * Z, w * X + x * W + y * Z - z * Y,
                     w * Y - x * Z + y * W + z * X, w * Z + x * Y - y * X + z * W], -1)  # fmt: skip


def numbers(planes):
    z = sum(p.astype(np.int64) << 8 * b for b, p in enumerate(planes))  # [C,T,N]
    return np.where(z % 2, -(z + 1) // 2, z // 2).cumsum(1).transpose(1, 2, 0)


def read_by_the_page(path):
    a = np.load(path)
    about, frames = json.loads(a["film.json"]), {}
    for p, part in enumerate(about["parts"]):
        rest = {k: a[f"segment_{part['segment']:03d}/{k}"].astype(float)
                for k in ("means", "quats", "log_scales", "opacity_logits", "sh")}  # fmt: skip
        q = {
            k: about["step"][k] * numbers(a[f"part_{p:05d}/{k}"]) for k in ("means", "quats", "sh")
        }
        for i, t in enumerate(part["at"]):
            body, origin = np.split(a[f"part_{p:05d}/pose"][i], [4])
            R = quat_to_rotation(body)
            quats = quaternion_product(quaternion_product(body, q["quats"][i]), rest["quats"])
            frames[t] = {
                **rest,
                "means": (rest["means"] + q["means"][i]) @ R.T + origin,
                "quats": quats / np.linalg.norm(quats, axis=-1, keepdims=True),
                "sh": rest["sh"] + q["sh"][i].reshape(rest["sh"].shape),
            }
    return about, [frames[t] for t in range(len(about["frames"]))]


def test_a_reader_written_from_the_page_finds_what_was_written(film):
    path, reel = film
    about, frames = read_by_the_page(path)
    assert about["frames"] == list(range(0, 2 * FRAMES, 2)) and about["times"][3] == 0.2
    assert [s["number"] for s in about["segments"]] == [0, 1]
    for t, found in enumerate(frames):
        true = reel.gaussians(t)
        off = np.linalg.norm(found["means"] - true.means, axis=-1).max() / SCALE
        assert off <= 0.1, off  # mm
        cosine = np.abs((found["quats"] * true.quats).sum(-1)).clip(0, 1)
        assert np.degrees(2 * np.arccos(cosine)).max() < 0.2
        np.testing.assert_allclose(found["log_scales"], true.log_scales, atol=2.5e-3)
        np.testing.assert_allclose(found["opacity_logits"], true.opacity_logits, atol=4e-3)
        assert np.abs(found["sh"] - true.sh).max() * 0.2821 <= 1 / 510


def test_our_reader_reads_the_same_frame_by_frame(film):
    path, reel = film
    about, frames = read_by_the_page(path)
    again = load_film_file(path)
    for t in (CUT, 0, FRAMES - 1, 17):  # in any order
        g = again.gaussians(t)
        np.testing.assert_allclose(g.means, frames[t]["means"], atol=1e-6)
        np.testing.assert_allclose(np.abs((g.quats * frames[t]["quats"]).sum(-1)), 1, atol=1e-5)
        np.testing.assert_allclose(g.sh, frames[t]["sh"], atol=1e-6)
        assert g.means.dtype == g.quats.dtype == g.sh.dtype == g.log_scales.dtype == np.float32
    assert list(again.frames) == list(reel.frames) and list(again.segment) == list(reel.segment)
    assert again.scene_scale == SCALE and again.seen(0).shape == (N,)
    np.testing.assert_allclose(again.recording_from_film.R, reel.recording_from_film.R)
    np.testing.assert_allclose(again.times, reel.times)


def test_it_is_a_tenth_of_the_plys(film, tmp_path):
    path, reel = film
    for i in range(0, FRAMES, 8):
        save_ply(tmp_path / f"{i}.ply", reel.gaussians(i))
    ply = sum(p.stat().st_size for p in tmp_path.iterdir()) / len(list(tmp_path.iterdir()))
    # Two sets at rest for 24 frames: the file of one segment is smaller still.
    assert path.stat().st_size <= FRAMES * ply / 10, FRAMES * ply / path.stat().st_size


def test_without_a_unit_steps_are_a_thousandth_of_the_animal(tmp_path):
    reel = walking(n=50, frames=3)
    import dataclasses

    reel = dataclasses.replace(reel, scene_scale=None, recording_from_film=None)
    save_film_file(tmp_path / "a.film", reel)
    again = load_film_file(tmp_path / "a.film")
    assert again.mm is None and again.recording_from_film is None
    off = np.abs(again.gaussians(2).means - reel.gaussians(2).means).max()
    assert 0 < off < 1e-3


def test_what_cannot_be_a_film_is_refused(tmp_path):
    import dataclasses

    reel = walking(n=20, frames=3)
    other = dataclasses.replace(reel, segment=np.zeros(3, int),
                                gaussians=lambda i: walking(20 + i, 3).gaussians(i))  # fmt: skip
    with pytest.raises(ShapeError, match="not the same ones"):
        save_film_file(tmp_path / "a.film", other)
    broken = reel.gaussians(1)
    broken.means[3] = np.nan
    bad = dataclasses.replace(reel, gaussians=lambda i: broken if i == 1 else reel.gaussians(i))
    with pytest.raises(LayoutError, match="no number"):
        save_film_file(tmp_path / "a.film", bad)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.film").write_text("mine")
    with pytest.raises(LayoutError, match="did not write"):
        save_film_file(tmp_path / "a.film", reel)


def rewritten(source, target, **changed):
    """The archive with members changed: None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = changed.get(name, old.read(name))
            if data is not None:
                new.writestr(name, data(old.read(name)) if callable(data) else data)
    return target


def as_npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def told(**more):
    return lambda data: json.dumps(json.loads(data) | more)


PART0 = "part_00000/means.npy"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"film.json": None}, "not a film"),
        ({"film.json": "{"}, "not JSON"),
        ({"film.json": "[]"}, "archive of something else"),
        ({"film.json": told(format="x")}, "archive of something else"),
        ({"film.json": told(version=2)}, "another version"),
        ({"film.json": told(frames=[])}, "frames is no list"),
        ({"film.json": told(times=[1, 2])}, "times is no list"),
        ({"film.json": told(step={"means": -1})}, "step does not hold"),
        ({"film.json": told(recording_from_film={"scale": 1, "R": [[1], [1, 2]]})}, "neither null"),
        ({"film.json": told(segments=[])}, "a segment that is not there"),
        ({"film.json": told(parts=[{"segment": 0, "at": [0, 0]}])}, "each of 24 frames once"),
        ({PART0: None}, "not all of it"),
        ({PART0: b"hello"}, "an array is damaged"),
        ({PART0: as_npy(np.zeros((1, 3, 16, 5), np.uint8))}, "does not fit"),
        ({PART0: as_npy(np.zeros((1, 3, 16, N), np.int8))}, "does not fit"),
        ({PART0: as_npy(np.array([{}]))}, "does not fit"),
        ({PART0: lambda data: data[: len(data) // 2]}, "does not fit"),
        ({"segment_000/means.npy": as_npy(np.full((N, 3), np.nan, "<f4"))}, "no number"),
    ],
)  # fmt: skip
def test_a_malformed_file_says_what_is_wrong(film, tmp_path, changed, said):
    path = rewritten(film[0], tmp_path / "a.film", **changed)
    with pytest.raises(LayoutError, match=said):
        load_film_file(path).gaussians(0)


def test_a_damaged_file_says_so(film, tmp_path):
    data = bytearray(film[0].read_bytes())
    at = data.find(b"part_00000/means.npy") + 3000
    for name, wrong in (("short", data[:-500]), ("text", b"ply\n" * 100), ("empty", b"")):
        (tmp_path / name).write_bytes(wrong)
        with pytest.raises(LayoutError, match="not a film, or a damaged one"):
            load_film_file(tmp_path / name)
    data[at] ^= 0x55  # one byte in the middle: the archive's sums tell
    (tmp_path / "flipped").write_bytes(data)
    with pytest.raises(LayoutError, match="damaged"):
        load_film_file(tmp_path / "flipped").gaussians(0)
    with pytest.raises(LayoutError, match="no such film"):
        load_film_file(tmp_path / "nothing.film")
