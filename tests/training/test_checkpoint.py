import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import CheckpointError, TrainingError
from mouselift_jax.training import checkpoint
from mouselift_jax.training.checkpoint import Checkpoints, abstract_like, checksum
from mouselift_jax.training.run_params import load_run_params
from tests.training import toy_run


def items(value: float):
    return {"params": {"a": jnp.full((64, 64), value)}, "optimiser": {"step": jnp.int32(value)}}


def placed_like(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return abstract_like(tree, jax.tree.map(lambda _: one, tree))


def test_keeps_the_newest_and_the_best(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2, best="heldout/psnr") as c:
        for step, psnr in ((1, 10.0), (2, 30.0), (3, 20.0), (4, 25.0), (5, 21.0)):
            c.save(step, items(step), {"heldout/psnr": psnr})
        c.wait()
        assert c.steps() == [2, 4, 5]
        step, got = c.restore(placed_like(items(0)))
    assert step == 5 and float(got["params"]["a"][0, 0]) == 5.0


def test_saving_twice_is_saving_once(tmp_path):
    with Checkpoints(tmp_path / "c") as c:
        c.save(1, items(1))
        c.save(1, items(2))
        c.wait()
        assert float(c.restore(placed_like(items(0)))[1]["params"]["a"][0, 0]) == 1.0


def _damage(folder, how):
    files = sorted(
        (p for p in (folder / "params").rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size
    )
    data = bytearray(files[0].read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 0x10
        files[0].write_bytes(data)
    elif how == "truncate":
        files[0].write_bytes(data[: len(data) // 2])
    else:
        shutil.rmtree(folder / "params")


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_a_damaged_newest_is_named_and_the_one_before_is_used(tmp_path, caplog, how):
    folder = tmp_path / "c"
    noise = lambda k: {"params": {"a": jax.random.normal(jax.random.key(k), (64, 64))}}  # noqa: E731
    with Checkpoints(folder) as c:
        for step in (1, 2):
            c.save(step, noise(step))
    _damage(folder / "2", how)
    with Checkpoints(folder) as c:
        step, got = c.restore(placed_like(noise(0)))
        assert step == 1
        np.testing.assert_array_equal(got["params"]["a"], noise(1)["params"]["a"])
        assert "checkpoint 2" in caplog.text and "damaged" in caplog.text
        assert (tmp_path / "damaged_checkpoints/2").is_dir()
        c.save(2, noise(2))  # its number is free again
        c.wait()
        assert c.steps() == [1, 2]


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_others_get_the_newest_sound_weights(tmp_path, caplog, how):
    noise = lambda k: {"params": {"a": jax.random.normal(jax.random.key(k), (64, 64))}}  # noqa: E731
    with Checkpoints(tmp_path / "c") as c:
        for step in (1, 2):
            c.save(step, noise(step))
    _damage(tmp_path / "c/2", how)
    params, step, *_ = load_run_params(tmp_path / "c")
    assert step == 1 and "checkpoint 2" in caplog.text
    np.testing.assert_array_equal(params["a"], noise(1)["params"]["a"])
    assert (tmp_path / "c/2").is_dir()  # another run's: nothing is moved
    with pytest.raises(CheckpointError, match="no sound"):
        load_run_params(tmp_path / "c", 2)


def test_damage_in_any_file_is_damage_and_not_another_network(tmp_path, caplog):
    """A byte of each file in turn: what is restored is whole, from this checkpoint or the last."""
    noise = {
        k: {"params": {"a": jax.random.normal(jax.random.key(k), (64, 64))},
            "optimiser": {"opt_state": [{"mu": jnp.full((3,), float(k))}], "step": jnp.int32(k)}}
        for k in (1, 2)
    }  # fmt: skip
    with Checkpoints(tmp_path / "c") as c:
        for k, tree in noise.items():
            c.save(k, tree)
    names = [
        p.relative_to(tmp_path / "c") for p in (tmp_path / "c" / "2").rglob("*") if p.is_file()
    ]
    assert len(names) > 10
    older = 0
    for number, name in enumerate(names):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "c", copy)
        data = bytearray((copy / name).read_bytes())
        if not data:
            continue
        data[len(data) // 2] ^= 0x10
        (copy / name).write_bytes(data)
        with Checkpoints(copy) as c:
            step, got = c.restore(placed_like(noise[1]))
        jax.tree.map(np.testing.assert_array_equal, got, noise[step])
        older += step == 1
    assert older >= 4  # data and lists of arrays of both items; some files matter to nobody


def test_all_damaged_is_an_error(tmp_path):
    with Checkpoints(tmp_path / "c") as c:
        c.save(1, items(1))
    _damage(tmp_path / "c/1", "remove")
    with Checkpoints(tmp_path / "c") as c, pytest.raises(CheckpointError, match="no sound"):
        c.restore(placed_like(items(0)))


def test_none_at_all_is_none(tmp_path):
    with Checkpoints(tmp_path / "c") as c:
        assert c.restore(placed_like(items(0))) is None


def test_other_shapes_are_told_not_skipped(tmp_path):
    with Checkpoints(tmp_path / "c") as c:
        c.save(1, items(1))
        other = {"params": {"a": jnp.zeros((3, 64)), "b": jnp.zeros(2)}}
        with pytest.raises(CheckpointError, match=r"a: \(64, 64\) in the file, \(3, 64\) expected"):
            c.wait()
            c.restore(placed_like(other))


def test_a_write_cut_short_is_not_a_checkpoint(tmp_path):
    with Checkpoints(tmp_path / "c") as c:
        c.save(1, items(1))
    # What a kill in the middle of a save leaves behind.
    shutil.copytree(tmp_path / "c/1", tmp_path / "c/2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path / "c") as c:
        assert c.steps() == [1]
        c.save(2, items(2))
        c.wait()
        assert c.steps() == [1, 2]


def test_disk_full_before_writing(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / "c") as c:
        c.save(1, items(1))
        c.wait()
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(TrainingError, match="no room") as told:
            c.save(2, items(2))
        assert "previous checkpoint is intact" in str(told.value)
        assert c.steps() == [1]


def test_disk_full_while_writing(tmp_path):
    """A limit on the size of files stands in for a full disk: the write fails half-way."""
    import resource
    import signal

    big = {"params": {"a": jax.random.normal(jax.random.key(0), (512, 512))}}
    with Checkpoints(tmp_path / "c") as c:
        c.save(1, items(1))
        c.wait()
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))
        try:
            with pytest.raises(TrainingError, match="could not|not written"):
                c.save(2, big)
                c.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, ignored)
    with Checkpoints(tmp_path / "c") as c:
        assert c.restore(placed_like(items(0)))[0] == 1


def test_checksum_sees_every_bit_and_place():
    a = jax.random.normal(jax.random.key(0), (5, 7))
    base = int(checksum({"a": a}))
    assert base != int(checksum({"a": a[::-1]}))
    assert base != int(checksum({"a": a.T}))
    assert base != int(checksum({"a": a.at[3, 3].set(jnp.nextafter(a[3, 3], 9.0))}))
    assert base == int(checksum({"a": np.asarray(a)}))
    mixed = {"b": jnp.ones(3, bool), "h": jnp.ones(3, jnp.bfloat16), "i": jnp.int32(4)}
    assert int(checksum(mixed)) != int(checksum(mixed | {"b": jnp.zeros(3, bool)}))


def test_weights_of_a_run_for_others(tmp_path):
    _, state, _ = toy_run.run(tmp_path, 6)
    params, step, averaged, _ = load_run_params(tmp_path / "checkpoints")
    assert step == 6 and averaged and isinstance(params["up"]["kernel"], np.ndarray)
    np.testing.assert_array_equal(params["up"]["kernel"], state.ema["up"]["kernel"])
    before = sorted(os.listdir(tmp_path / "checkpoints"))
    assert before == sorted(os.listdir(tmp_path / "checkpoints"))
    with pytest.raises(CheckpointError, match="no such folder"):
        load_run_params(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_metrics_survive_as_json(tmp_path):
    toy_run.run(tmp_path, 3)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3]
