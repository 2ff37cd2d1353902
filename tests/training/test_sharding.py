import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mouselift_jax.errors import ConfigError
from mouselift_jax.models.layers import LOGICAL_AXES
from mouselift_jax.training import sharding

ROOT = Path(__file__).resolve().parents[2]


def test_every_logical_axis_has_a_rule_and_the_other_way_round():
    rules = dict(sharding.RULES)
    assert set(LOGICAL_AXES) <= set(rules)
    for axes in rules.values():
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            assert axis in sharding.AXES


def test_mesh_sizes():
    devices = jax.devices()[:2]
    assert dict(sharding.make_mesh(None, devices).shape)["data"] == 2
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1}, devices)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1, "sequence": 1}
    for wrong in ({"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}, {"fsdp": 4}):
        with pytest.raises(ConfigError, match="mesh"):
            sharding.make_mesh(wrong, devices)
    with pytest.raises(ConfigError, match="accum_steps x data x fsdp = 1 x 2"):
        sharding.check_batch(3, 1, mesh)


def test_fallback_splits_the_largest_divisible_dimension():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2}, jax.devices()[:2])
    assert sharding.infer_spec((3, 1024, 2048), 4, mesh) == P(None, None, "fsdp")
    assert sharding.infer_spec((1023, 2048), 4, mesh) == P(None, "fsdp")
    assert sharding.infer_spec((1025, 2047), 4, mesh) == P()
    assert sharding.infer_spec((64, 64), 4, mesh) == P()  # small ones are copied


def test_named_axes_that_do_not_divide_stay_whole():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2}, jax.devices()[:2])
    shape = jax.ShapeDtypeStruct
    tree = {
        "a": nn.LogicallyPartitioned(shape((6, 8), jnp.float32), ("embed", "mlp")),
        "b": nn.LogicallyPartitioned(shape((7, 8), jnp.float32), ("embed", "mlp")),
    }
    found = sharding.param_shardings(tree, mesh)
    assert found["a"].spec == P("fsdp", "tensor") and found["b"].spec == P(None, "tensor")


def test_optimiser_state_goes_where_its_weight_is():
    from mouselift_jax.training.trainer import Trainer
    from tests.training import toy_run

    config = toy_run.config(3, **{"mesh.data": 1, "mesh.fsdp": 2})
    trainer = Trainer(toy_run.task(), config, devices=jax.devices()[:2])
    state = trainer.create()
    weight = state.params["up"]["kernel"]
    assert weight.sharding.shard_shape(weight.shape) == (8, 64)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == weight.shape]
    assert len(moments) == 2 and all(m.sharding == weight.sharding for m in moments)
    assert state.ema["up"]["kernel"].sharding == weight.sharding


@pytest.mark.slow
def test_views_of_the_unet_on_different_devices():
    """Views over `sequence`: the same loss and gradients; only slot 0's keys and values move."""
    from mouselift_jax.models import mvunet
    from mouselift_jax.stages.harness import cost

    config = mvunet.MVUNetConfig(
        sample_size=8, block_channels=(32,), block_attends=(True,), heads=(2,), layers_per_block=1,
        context_dim=16, class_dim=32, norm_groups=8, n_views=2,
    )  # fmt: skip
    net = mvunet.MVUNet(config, implementation="blocked")
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    inputs = (normal(2, 2, 8, 8, 8), np.int32([3, 500]), normal(2, 2, 5, 16), normal(2, 2, 32))
    params = nn.meta.unbox(jax.jit(net.init)(jax.random.key(0), *inputs))
    step = jax.jit(jax.value_and_grad(lambda p, *x: jnp.mean(net.apply(p, *x) ** 2)))
    value, grads = step(params, *inputs)
    mesh = sharding.make_mesh({"data": 1, "sequence": 2}, jax.devices()[:2])
    with sharding.use(mesh):
        compiled = step.lower(params, *inputs).compile()
        split_value, split_grads = compiled(params, *inputs)
    np.testing.assert_allclose(split_value, value, rtol=1e-5)
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(split_grads), strict=True):
        assert np.linalg.norm(two - one) <= 1e-4 * np.linalg.norm(one) + 1e-9
    moved = sum(size for _, size in cost.collectives(compiled.as_text())[0].values())
    weights = sum(4 * x.size for x in jax.tree.leaves(params))  # their gradients are summed
    slot = 2 * 8 * 8 * 32 * 4  # bytes of slot 0's keys, both objects
    # Four times among the views: keys and values there, their gradients back.
    assert weights < moved <= weights + 4 * 2 * 2 * slot + 1024


# --- the same run on any mesh and any number of processes ---

MESHES = ("1,1,1,1", "2,1,1,1", "1,4,1,1", "2,2,2,1", "1,2,2,2", "4,1,1,2")


def launch(folder, devices, *flags):
    env = dict(os.environ, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-m", "tests.training.toy_run", str(folder), *map(str, flags)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def result(process, folder, timeout=540):
    """What a process wrote; one that never ends is stopped, and says where it was."""
    try:
        _, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        _, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return json.loads((folder / "result.json").read_text())


def agree(found, wanted):
    np.testing.assert_allclose(found["losses"][0], wanted["losses"][0], rtol=1e-5)
    np.testing.assert_allclose(found["norms"][0], wanted["norms"][0], rtol=1e-4)
    np.testing.assert_allclose(found["losses"][19], wanted["losses"][19], rtol=1e-4)


def size_of(mesh):
    return int(np.prod([int(n) for n in mesh.split(",")]))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return result(launch(folder, 1), folder)


@pytest.mark.parametrize("mesh", ["2,2,2,1", "1,2,1,1"])
def test_same_result_on_every_mesh(tmp_path, single, mesh):
    agree(result(launch(tmp_path, size_of(mesh), "--mesh", mesh), tmp_path), single)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_same_result_on_every_mesh_long(tmp_path, single, mesh):
    first = result(launch(tmp_path / "a", size_of(mesh), "--mesh", mesh), tmp_path / "a")
    agree(first, single)
    again = result(launch(tmp_path / "b", size_of(mesh), "--mesh", mesh), tmp_path / "b")
    assert first == again  # bit for bit on the same mesh


def together(folder, n, devices, *flags):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = [*flags, "--coordinator", f"127.0.0.1:{port}", "--processes", n]
    return [launch(folder, devices, *flags, "--process-id", i) for i in range(n)]


def wait_all(processes):
    errors = [p.communicate(timeout=540)[1] for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), errors[0][-3000:]


def test_two_processes_give_the_same_run(tmp_path, single):
    wait_all(together(tmp_path, 2, 2, "--mesh", "2,2,1,1"))
    agree(json.loads((tmp_path / "result.json").read_text()), single)


@pytest.mark.slow
def test_a_sample_gets_the_same_draws_from_any_number_of_processes(tmp_path):
    """Timestep and noise are drawn by row: processes must put a batch's rows in one order."""
    from tests.sample_sets import write_samples
    from tests.training import toy_run

    samples = write_samples(tmp_path / "set", n=8, size=16)
    alone = toy_run.draws(tmp_path / "alone", str(samples))
    folder = tmp_path / "two"
    wait_all(together(folder, 2, 1, "--mesh", "2,1,1,1", "--draws", samples))
    found = json.loads((folder / "result.json").read_text())
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-3)
    assert len(alone) == 3 and alone[0] != alone[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "n, devices, mesh", [(2, 1, "1,2,1,1"), (4, 1, "2,2,1,1"), (4, 2, "4,1,2,1")]
)
def test_more_processes_give_the_same_run(tmp_path, single, n, devices, mesh):
    wait_all(together(tmp_path, n, devices, "--mesh", mesh))
    agree(json.loads((tmp_path / "result.json").read_text()), single)


@pytest.mark.slow
def test_all_processes_stop_together_and_resume_on_another_mesh(tmp_path, single):
    import time

    processes = together(tmp_path, 2, 1, "--mesh", "2,1,1,1", "--wait-s", "0.3")
    while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text():
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)  # one is told, all stop
    for p in processes:
        p.communicate(timeout=540)
    assert [p.returncode for p in processes] == [75, 75]
    agree(result(launch(tmp_path, 4, "--mesh", "1,4,1,1"), tmp_path), single)
