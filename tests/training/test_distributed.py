"""When a process joins others, and with which devices: what launchers tell in the environment."""

import signal

import pytest

from mouselift_jax.errors import ConfigError
from mouselift_jax.training import distributed

STEP = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_STEP_NUM_NODES": "4"}


@pytest.fixture
def joined(monkeypatch):
    """Arguments of jax.distributed.initialize, which takes SIGTERM for itself as JAX does."""
    calls = []

    def initialize(*args, **kwargs):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        calls.append((args, kwargs))

    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "TPU_WORKER_HOSTNAMES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
    monkeypatch.setattr(distributed, "_joined", False)
    before = signal.getsignal(signal.SIGTERM)
    yield calls
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "environment, devices",
    [
        (STEP | {"SLURM_GPUS_ON_NODE": "8"}, list(range(8))),  # a task a node has all its GPUs
        (STEP | {"SLURM_GPUS_ON_NODE": "2", "SLURM_STEP_NUM_NODES": "2"}, None),  # a task a GPU
        (STEP, None),
    ],
)
def test_slurm(joined, monkeypatch, environment, devices):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    distributed.initialise()
    assert joined == [((), {"local_device_ids": devices})]


def test_alone(joined, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script outside srun
    monkeypatch.setattr(distributed, "_on_tpu_slice", lambda: False)
    distributed.initialise()
    assert joined == []


@pytest.mark.parametrize(
    "hosts, chips, expected",
    [
        ("a,b", [], True),
        ("a", ["/dev/accel0"], False),
        ("", ["/dev/accel0"], True),
        ("", [], False),
    ],
)
def test_tpu(joined, monkeypatch, hosts, chips, expected):
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", hosts)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr(
        distributed.glob, "glob", lambda pattern: chips if "accel" in pattern else []
    )
    distributed.initialise()
    assert bool(joined) is expected
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    joined.clear()
    distributed.initialise()
    assert joined == []


def test_flags(joined):
    distributed.initialise("host:1", 2, 1)
    assert joined == [(("host:1", 2, 1), {})]
    with pytest.raises(ConfigError, match="all three flags"):
        distributed.initialise("host:1", 2)
    with pytest.raises(ConfigError, match="no such process"):
        distributed.initialise("host:1", 2, 2)
