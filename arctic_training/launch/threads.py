"""OpenMP settings of the processes of a run, which share the cores of the machine."""

import os
from collections.abc import Mapping

_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""Waiting threads yield their core: at once in Intel's and LLVM's OpenMP; in GNU's, which torch ships, after some 200
us, since most waits on an idle machine are shorter. By default they spin for milliseconds, which takes most of the time
where processes share cores."""
_USERS_WAITING = {*_WAITING, "KMP_BLOCKTIME"}


def openmp_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that a process of a run sets before torch is imported, without those that are set already.

    Threads wait passively. Several processes on one machine share its cores evenly.
    """
    settings = {} if _USERS_WAITING & environment.keys() else dict(_WAITING)
    if "OMP_NUM_THREADS" not in environment and (threads := _share_of_cores(environment)):
        settings["OMP_NUM_THREADS"] = str(threads)
    return settings


def _share_of_cores(environment: Mapping[str, str]) -> int | None:
    """Returns the cores of each process of the run on this machine; None where there is only one."""
    own = total = len(os.sched_getaffinity(0))
    count = _number(environment, "LOCAL_WORLD_SIZE") or _number(environment, "LOCAL_SIZE")  # the latter is DeepSpeed's
    if count is None:
        tasks, nodes = (_number(environment, f"SLURM_STEP_NUM_{what}") or 1 for what in ("TASKS", "NODES"))
        count = -(-tasks // nodes)
        total = _number(environment, "SLURM_CPUS_ON_NODE") or total  # each task may be bound to its share already
    return min(own, max(1, total // count)) if count > 1 else None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name, "")
    return int(value) or None if value.isascii() and value.isdecimal() else None
