"""OpenMP settings of the processes of a run: threads that share the machine with one another and with others."""

import os
from collections.abc import Mapping

_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""Threads that wait give their core away: at once by Intel's and LLVM's OpenMP; by GNU's, which torch comes with, after
some 200 us, since most waits on an idle machine are shorter. By default they hold it for milliseconds, and where others
have the cores, most of the time is spent so."""
_USERS_WAITING = {*_WAITING, "KMP_BLOCKTIME"}


def openmp_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns what a process of a run adds to its environment before torch is imported; nothing that is in it already.

    Threads wait passively. Of several processes on one machine each has its share of the cores.
    """
    settings = {} if _USERS_WAITING & environment.keys() else dict(_WAITING)
    if "OMP_NUM_THREADS" not in environment and (threads := _share_of_cores(environment)):
        settings["OMP_NUM_THREADS"] = str(threads)
    return settings


def _share_of_cores(environment: Mapping[str, str]) -> int | None:
    """Returns the cores for each of the run's processes on this machine; None for one that is alone there."""
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
