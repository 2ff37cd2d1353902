"""Several processes as one run: joining, agreeing, leaving."""

from __future__ import annotations

import glob
import importlib.util
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mouselift_jax.errors import ConfigError

_joined = False


def initialise(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of the run, if there are any.

    With flags: explicitly. Without: on a TPU slice and in a Slurm step of several tasks, where JAX
    finds the others by itself. Else this process is the whole run.
    """
    given = [coordinator, processes, process_id]
    if any(v is not None for v in given):
        if any(v is None for v in given):
            raise ConfigError(
                "several processes need all three flags",
                expected="--coordinator=HOST:PORT --processes=N --process_id=I",
                found=f"coordinator={coordinator} processes={processes} process_id={process_id}",
                fix="give all three in every process, or none of them",
            )
        if not 0 <= process_id < processes:
            raise ConfigError(
                "no such process",
                where=f"--process_id={process_id}",
                expected=f"0 to {processes - 1}",
                fix="number the processes from 0",
            )
        if os.environ.get("JAX_PLATFORMS", jax.config.jax_platforms or "") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        _join(coordinator, processes, process_id)
    elif (devices := _slurm_devices()) is not None:
        _join(local_device_ids=devices or None)
    elif _on_tpu_slice():
        _join()


def _join(*args: Any, **kwargs: Any) -> None:
    global _joined
    listener = signal.getsignal(signal.SIGTERM)
    jax.distributed.initialize(*args, **kwargs)
    signal.signal(signal.SIGTERM, listener)  # JAX has put its own in its place
    _joined = True


def _slurm_devices() -> list[int] | None:
    """None outside a Slurm step of several tasks; else this task's GPUs, [] = as JAX decides.

    JAX gives a task the one GPU of its number on the node. A task that has a node to itself gets
    all of the node's.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if tasks < 2 or "SLURM_STEP_NODELIST" not in os.environ:  # a batch script's shell has none
        return None
    one_a_node = tasks == int(os.environ.get("SLURM_STEP_NUM_NODES", "0"))
    return list(range(int(os.environ.get("SLURM_GPUS_ON_NODE", "0")))) if one_a_node else []


def _on_tpu_slice() -> bool:
    """Whether this is a host with TPU chips that may have others beside it."""
    platforms = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms or "tpu"
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES")
    if "tpu" not in platforms or importlib.util.find_spec("libtpu") is None:
        return False
    if hosts:
        return "," in hosts
    # The machine's own description, which JAX asks for, says how many hosts there are.
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")) and not os.environ.get(
        "TPU_SKIP_MDS_QUERY"
    )


def shutdown() -> None:
    """Leave the run in order, so that the other processes do not take this one for lost."""
    global _joined
    if _joined:
        jax.distributed.shutdown()
        _joined = False


def agree(value: int) -> int:
    """The largest of one integer over all processes, which wait for each other."""
    if jax.process_count() == 1:
        return int(value)
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


class Agreement:
    """The largest of an integer over all processes, without making any of them wait.

    What one process says after a step, all know after the next: the integer travels behind the
    step's own work, and is read when the loop looks at that step anyway.
    """

    def __init__(self) -> None:
        self._travelling: jax.Array | None = None
        if jax.process_count() > 1:
            mesh = Mesh(np.array(jax.devices()), ("all",))
            self._rows = NamedSharding(mesh, PartitionSpec("all"))
            self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def exchange(self, value: int) -> int:
        """Say `value`; returns the largest that was said before, alone: `value` itself.

        All processes must call it equally often.
        """
        if jax.process_count() == 1:
            return value
        mine = np.full(jax.local_device_count(), value, np.int32)
        said = jax.make_array_from_process_local_data(self._rows, mine)
        before, self._travelling = self._travelling, self._largest(said)
        return 0 if before is None else int(before)


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
