"""The orbax writer: leaf by leaf, readable by orbax, every type."""

from __future__ import annotations

import gc
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import CheckpointError
from mouselift_jax.weights import store


@pytest.mark.slow
def test_only_a_few_leaves_are_alive_at_any_time(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH_BYTES", 100_000)  # two of these leaves
    alive, most = set(), 0

    def make(i):
        nonlocal most
        gc.collect()
        array = np.full((100, 100), i, np.float32)
        alive.add(i)
        weakref.finalize(array, alive.discard, i)
        most = max(most, len(alive))
        return array

    leaves = {
        f"a/b{i}/kernel": store.LazyLeaf((100, 100), "float32", lambda i=i: make(i))
        for i in range(30)
    }
    store.write_params(tmp_path / "params", leaves)
    assert most <= 6  # a batch that is written, one that is made, and what was just let go
    back = store.read_params(tmp_path / "params")
    assert back.keys() == leaves.keys()
    assert all((back[f"a/b{i}/kernel"] == i).all() for i in range(30))


def test_batches_hold_every_leaf_once_and_little_at_a_time():
    sizes = [30, 30, 30, 500, 10, 90, 1, 0, 99]
    batches = store._batches(sizes, 100)
    assert [i for b in batches for i in range(b.start, b.stop)] == list(range(len(sizes)))
    assert [sum(sizes[b]) for b in batches] == [90, 500, 100, 100]
    assert store._batches([7], 1) == [slice(0, 1)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_types_and_checksums(tmp_path, dtype):
    value = np.asarray(jnp.arange(12, dtype=dtype).reshape(3, 4))
    leaf = store.LazyLeaf(value.shape, value.dtype, lambda: value)
    store.write_params(tmp_path / "params", {"x": leaf, "y/z": leaf})
    back = store.read_params(tmp_path / "params")
    assert back["y/z"].dtype == value.dtype
    assert store.checksum(back["x"]) == store.checksum(value)
    assert store.checksum(value) != store.checksum(value[::-1])


def test_orbax_reads_it_without_us(tmp_path):
    import orbax.checkpoint as ocp

    leaf = store.LazyLeaf((2,), "float32", lambda: np.ones(2, np.float32))
    store.write_params(tmp_path / "params", {"a/b": leaf})
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "params")
    np.testing.assert_array_equal(tree["a"]["b"], [1, 1])


def test_paths_from_where_one_stands(tmp_path, monkeypatch):
    """orbax writes and reads absolute paths only, and says so badly."""
    monkeypatch.chdir(tmp_path)
    leaf = store.LazyLeaf((2,), "float32", lambda: np.ones(2, np.float32))
    store.write_params("params", {"a/b": leaf})
    assert (tmp_path / "params").is_dir()
    np.testing.assert_array_equal(store.read_params("params")["a/b"], [1, 1])


def test_an_error_while_a_leaf_is_made_arrives_as_it_is(tmp_path):
    def fail():
        raise CheckpointError("bad value")

    leaf = store.LazyLeaf((2,), "float32", lambda: np.ones(2, np.float32))
    bad = store.LazyLeaf((2,), "float32", fail)
    with pytest.raises(CheckpointError, match="bad value"):
        store.write_params(tmp_path / "params", {"a": leaf, "b": bad, "c": leaf})
    with pytest.raises(CheckpointError, match="no parameters"):
        store.read_params(tmp_path / "nowhere")
