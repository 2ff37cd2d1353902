"""The loader: a function of (seed, step), with true cameras."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mouselift_jax.data.batches import loader as loader_module
from mouselift_jax.data.batches.loader import Views, make_loader
from mouselift_jax.data.batches.pictures import Augment, composite
from mouselift_jax.errors import ConfigError, LayoutError
from tests.sample_sets import write_samples

FULL = {
    "batch_size": 2,
    "seed": 3,
    "background": "three_choices",
    "augment": Augment(brightness=0.2, contrast=0.2, hflip=0.5),
    "views": Views("random", 4, 3),
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("samples"), n=7, size=24, n_val=2)


def same(a, b):
    return all((x is None and y is None) or np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def take(loader, n, start=0):
    it = loader.starting_at(start)
    return [next(it) for _ in range(n)]


def test_shapes_and_ranges(samples):
    loader = make_loader(samples, "train", batch_size=2)
    batch = next(iter(loader))
    assert batch.images.shape == (2, 6, 24, 24, 3) and batch.images.dtype == np.float32
    assert batch.masks.shape == (2, 6, 24, 24, 1)
    assert batch.K.shape == (2, 6, 3, 3) and batch.c2w.shape == (2, 6, 4, 4)
    assert 0 <= batch.images.min() and batch.images.max() <= 1
    assert (batch.images[(batch.masks == 0)[..., 0]] == 1).all()  # white where nothing is
    assert loader.steps_per_epoch == 2 and len(loader.ids) == 5


def test_resumes_from_any_batch(samples):
    loader = make_loader(samples, "train", **FULL)
    whole = take(loader, 9)
    for step in (1, 4, 8):
        assert same(take(loader, 1, step)[0], whole[step])
    again = make_loader(samples, "train", **FULL, start_step=5, threads=5, prefetch=1)
    assert same(next(iter(again)), whole[5])
    assert not same(take(make_loader(samples, "train", **{**FULL, "seed": 4}), 1)[0], whole[0])


def test_hosts_share_the_same_batches(samples):
    whole = take(make_loader(samples, "train", **FULL), 3)
    parts = [take(make_loader(samples, "train", **FULL, shard=(i, 2)), 3) for i in range(2)]
    for step, batch in enumerate(whole):
        joined = [np.concatenate(x) for x in zip(parts[0][step], parts[1][step], strict=True)]
        assert same(batch, joined)


@pytest.mark.parametrize("hosts", [2, 4])
def test_rows_of_hosts_are_put_next_to_each_other(samples, hosts):
    """The devices' batch is the same whatever the number of processes, row by row."""
    how = {**FULL, "batch_size": 4}
    whole = take(make_loader(samples, "train", **how), 3)
    parts = [take(make_loader(samples, "train", **how, shard=(i, hosts)), 3) for i in range(hosts)]
    for step, batch in enumerate(whole):
        assert same(batch, [np.concatenate(x) for x in zip(*(p[step] for p in parts), strict=True)])


@pytest.mark.parametrize("hosts", [1, 2])
def test_one_pass_gives_every_sample_to_one_host(samples, hosts):
    how = {"batch_size": 4, "shuffle": False, "repeat": False}
    seen = [
        int(i)
        for h in range(hosts)
        for b in make_loader(samples, "train", **how, shard=(h, hosts))
        for i in b.sample_index
    ]
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_samples_wait_as_bytes_and_no_batch_of_floats_does(samples, monkeypatch):
    laid, read = [], []
    lay, one = loader_module.composite, loader_module._Read.__call__
    monkeypatch.setattr(loader_module, "composite", lambda *a: laid.append(1) or lay(*a))
    monkeypatch.setattr(
        loader_module._Read, "__call__", lambda self, t: read.append(t) or one(self, t)
    )
    it = iter(make_loader(samples, "train", batch_size=8, prefetch=8))
    next(it)
    time.sleep(0.5)  # what is read ahead is read by now
    assert len(laid) == 8
    assert len(read) <= 8 + 8 + 2  # was 72, in 9 batches


def test_every_epoch_sees_every_sample_in_another_order(samples):
    batches = take(make_loader(samples, "train", batch_size=1), 15)
    order = [int(b.sample_index[0]) for b in batches]
    epochs = [order[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(e) == list(range(5)) for e in epochs) and len(set(map(tuple, epochs))) > 1


def test_one_pass_in_order(samples):
    batches = list(make_loader(samples, "train", batch_size=2, shuffle=False, repeat=False))
    assert [b.sample_index.tolist() for b in batches] == [[0, 1], [2, 3], [4]]


def test_resizing_keeps_cameras_true(samples):
    big = next(iter(make_loader(samples, "val", shuffle=False)))
    small = next(iter(make_loader(samples, "val", shuffle=False, size=12)))
    np.testing.assert_allclose(small.K[..., :2, :], big.K[..., :2, :] / 2, rtol=1e-6)
    mean = big.images.reshape(1, 6, 12, 2, 12, 2, 3).mean((3, 5))
    np.testing.assert_allclose(small.images, mean, atol=0.02)


def test_flip_mirrors_pictures_cameras_and_world(samples):
    plain = next(iter(make_loader(samples, "val", shuffle=False)))
    flipped = next(iter(make_loader(samples, "val", shuffle=False, augment=Augment(hflip=1.0))))
    np.testing.assert_array_equal(flipped.images, plain.images[:, :, :, ::-1])
    np.testing.assert_allclose(np.linalg.det(flipped.c2w[0, :, :3, :3]), 1, atol=1e-5)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))
    for view in range(6):
        a = project(plain, view, points)
        b = project(flipped, view, points * [-1, 1, 1])
        np.testing.assert_allclose(b, [24, 0] + a * [-1, 1], atol=1e-4)


def project(batch, view, points):
    w2c = np.linalg.inv(batch.c2w[0, view].astype(float))
    p = (points @ w2c[:3, :3].T + w2c[:3, 3]) @ batch.K[0, view].T
    return p[:, :2] / p[:, 2:]


def test_colour_changes_the_animal_only(samples):
    plain = next(iter(make_loader(samples, "val", shuffle=False)))
    changed = next(iter(make_loader(samples, "val", shuffle=False, augment=Augment(0.3, 0.3))))
    outside = (plain.masks == 0)[..., 0]
    assert (changed.images[outside] == 1).all() and np.array_equal(changed.masks, plain.masks)
    assert np.abs(changed.images - plain.images)[~outside].mean() > 0.01


@pytest.mark.parametrize("background, allowed", [
    ("white", {1.0}), ("black", {0.0}), ("gray", {0.5}), (0.25, {0.25}),
    ("three_choices", {0.0, 0.5, 1.0}),
])  # fmt: skip
def test_backgrounds(samples, background, allowed):
    batches = take(make_loader(samples, "train", background=background), 12)
    seen = {float(v) for b in batches for v in b.background.ravel()}
    assert seen <= allowed and (len(seen) > 1) == (len(allowed) > 1)
    for b in batches:
        empty = b.images[0][(b.masks[0] == 0)[..., 0]]
        assert (empty == b.background[0]).all()


def test_random_background_has_colour(samples):
    b = next(iter(make_loader(samples, "train", background="random")))
    assert len(set(b.background[0].tolist())) == 3


def test_views_by_camera_number(samples):
    held_out = next(iter(make_loader(samples, "train", views=Views(exclude=(2,)))))
    assert held_out.camera_ids.tolist() == [[0, 1, 3, 4, 5]]
    only = next(iter(make_loader(samples, "train", views=Views(only=(2, 4)))))
    assert only.camera_ids.tolist() == [[2, 4]]
    with pytest.raises(ConfigError, match="none of the wanted cameras"):
        next(iter(make_loader(samples, "train", views=Views(only=(9,)))))


def test_composite_against_the_formula():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (3, 9, 11, 4)).astype(np.uint8)
    rgba[:, :3] = 0
    images, masks = composite(rgba, np.array([0.2, 0.5, 0.9]))
    a = rgba[..., 3:] / 255
    np.testing.assert_allclose(masks, a, atol=1e-6)
    np.testing.assert_allclose(
        images, rgba[..., :3] / 255 * a + (1 - a) * [0.2, 0.5, 0.9], atol=1e-5
    )


def test_bad_settings(samples):
    with pytest.raises(ConfigError, match="did you mean 'three_choices'"):
        make_loader(samples, "train", background="three_choice")
    with pytest.raises(ConfigError, match="divided among the hosts"):
        make_loader(samples, "train", batch_size=3, shard=(0, 2))
    with pytest.raises(LayoutError, match="no such split"):
        make_loader(samples, "test")


def test_bad_samples_stop_or_are_counted(tmp_path, caplog):
    path = write_samples(tmp_path, n=6, size=16, n_val=0)
    (path / "sample_000002/images/cam_000.png").unlink()
    with pytest.raises(LayoutError, match="view 0 is missing"):
        list(make_loader(path, "train", repeat=False))
    batches = list(make_loader(path, "train", repeat=False, shuffle=False, on_bad_sample="skip"))
    assert len(batches) == 5
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(said) == 1 and "sample_000002" in said[0]
    (path / "sample_000003/images/cam_000.png").unlink()
    with pytest.raises(LayoutError, match="2 of 6 samples"):
        make_loader(path, "train", on_bad_sample="skip")


def test_several_sets_are_one(samples, tmp_path):
    other = write_samples(tmp_path, n=3, size=24, n_val=0)
    loader = make_loader([samples, other], "train", batch_size=1, shuffle=False, repeat=False)
    assert [int(b.sample_index[0]) for b in loader] == list(range(8))
    assert loader.ids[5] == (str(other), "sample_000000")


def test_limit(samples):
    assert len(make_loader(samples, "train", limit=1).ids) == 1


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(samples):
    """In a program of its own: workers are spawned and import the main module."""
    code = f"""
import sys, json, numpy as np
from mouselift_jax.data.batches.loader import make_loader, Augment, Views
if __name__ == "__main__":
    settings = dict(batch_size=2, seed=3, background="three_choices",
                    augment=Augment(0.2, 0.2, 0.5), views=Views("random", 4, 3))
    sums = []
    for workers in (0, 2):
        it = make_loader({str(samples)!r}, "train", workers=workers, **settings).starting_at(2)
        sums.append([float(np.float64(next(it).images.sum())) for _ in range(4)])
    print(json.dumps(sums))
"""
    script = samples / "run_workers.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    one, two = json.loads(done.stdout.strip().splitlines()[-1])
    assert one == two


def test_a_loader_for_devices_hands_over_the_bytes_that_the_other_one_composites(samples):
    how = {"batch_size": 2, "background": "random", "seed": 3}
    bytes_, floats = (next(iter(make_loader(samples, **how, composited=c))) for c in (False, True))
    assert bytes_.images.dtype == np.uint8 and bytes_.images.shape[-1] == 4
    assert bytes_.masks is None
    for row in range(2):
        image, mask = composite(bytes_.images[row], bytes_.background[row])
        np.testing.assert_array_equal(image, floats.images[row])
        np.testing.assert_array_equal(mask, floats.masks[row])
    for a, b in zip(bytes_[2:], floats[2:], strict=True):
        np.testing.assert_array_equal(a, b)
