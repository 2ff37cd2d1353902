"""Several processes as one run: joining, agreeing, leaving."""

from __future__ import annotations

import os

import jax
import numpy as np

from mouselift_jax.errors import ConfigError

_joined = False


def initialise(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of the run, if there are any.

    With flags: explicitly. Without: on a TPU slice of several hosts and under Slurm with several
    tasks, where JAX finds the others by itself. Else this process is the whole run.
    """
    global _joined
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
        jax.distributed.initialize(coordinator, processes, process_id)
        _joined = True
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        jax.distributed.initialize()
        _joined = True
    elif len([h for h in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]) > 1:
        jax.distributed.initialize()
        _joined = True


def shutdown() -> None:
    """Leave the run in order, so that the other processes do not take this one for lost."""
    global _joined
    if _joined:
        jax.distributed.shutdown()
        _joined = False


def agree(value: int) -> int:
    """The largest of one integer over all processes; all must call it at the same place."""
    if jax.process_count() == 1:
        return int(value)
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
