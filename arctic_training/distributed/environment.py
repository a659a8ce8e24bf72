"""Environment variables: rank and world size as launchers set them, and variables that a run sets for libraries.

A run is often a guest in a process: what it set is restored when it ends, so that no process that is started later
takes itself for a part of the run.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

_RANK_OF = (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
"""The variables in which launchers say which process this is, and of how many."""
_OF_A_LAUNCHER = re.compile("TORCHELASTIC_.*|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_(RANK|WORLD_SIZE|NAME)|CROSS_(RANK|SIZE)")
"""The other variables that torchrun and DeepSpeed's launcher set for a process."""
_original: dict[str, str | None] = {}
"""The value that each variable had before the run set it; None: it was not set."""
_snapshots: list[dict[str, str]] = []
"""The whole environment at the beginning of each `track_env` block that is open."""


def set_env(name: str, value: str) -> None:
    """Sets a variable until `restore_env`."""
    if os.environ.get(name) != value:
        _original.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def set_env_default(name: str, value: str) -> None:
    """Sets a variable until `restore_env`, unless it is set already."""
    if name not in os.environ:
        set_env(name, value)


@contextmanager
def track_env() -> Iterator[None]:
    """Has `restore_env` undo also what libraries set inside the block."""
    snapshot = dict(os.environ)
    _snapshots.append(snapshot)
    try:
        yield
    finally:
        _record_changes(snapshot)
        _snapshots[:] = [other for other in _snapshots if other is not snapshot]


def restore_env() -> None:
    """Restores every variable that the run set to its former value."""
    for snapshot in _snapshots:
        _record_changes(snapshot)
    while _original:
        name, value = _original.popitem()
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for snapshot in _snapshots:
        snapshot.clear()
        snapshot.update(os.environ)


def rank() -> int:
    """Returns the rank that the launcher gave this process; 0 without a launcher."""
    return int(_env("RANK", "SLURM_PROCID", "0"))


def world_size() -> int:
    """Returns the number of processes that the launcher started; 1 without a launcher."""
    return int(_env("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "1"))


def local_rank() -> int:
    """Returns the rank among the processes of this machine; 0 without a launcher."""
    return int(_env("LOCAL_RANK", "SLURM_LOCALID", "0"))


def has_local_rank() -> bool:
    """Returns whether a launcher set the local rank."""
    return bool(_env("LOCAL_RANK", "SLURM_LOCALID", ""))


def has_rank() -> bool:
    """Returns whether torchrun, DeepSpeed or the like started this process, be it as the only one."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def rank_problem() -> str:
    """Returns what is wrong with the variables that launchers set for the rank; empty when nothing is."""
    values = {name: os.environ[name] for names in _RANK_OF for name in names if name in os.environ}
    for name, value in values.items():
        if not (value.isascii() and value.isdecimal()):
            return f"{name} is {value!r} in the environment; expected an integer of at least 0, set by a launcher"
    for own, count in _RANK_OF:
        if own in values and count in values and int(values[own]) >= int(values[count]):
            return f"{own} is {values[own]} and {count} is {values[count]} in the environment; ranks begin at 0"
    return ""


def without_launcher_variables() -> dict[str, str]:
    """Returns the environment without what torchrun and DeepSpeed's launcher set for this process alone."""
    return {name: value for name, value in os.environ.items() if not _OF_A_LAUNCHER.fullmatch(name)}


def is_slurm_step() -> bool:
    """Returns whether SLURM started this process as one of several; a step of one task may be a shell."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def set_master_address() -> None:
    """Sets the rendezvous address of the processes of a SLURM step, which SLURM leaves unset."""
    if world_size() > 1 and "SLURM_STEP_NODELIST" in os.environ:
        set_env_default("MASTER_ADDR", first_slurm_host(os.environ["SLURM_STEP_NODELIST"]))
        set_env_default("MASTER_PORT", str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000))


def first_slurm_host(hosts: str) -> str:
    """Returns the first machine of SLURM's list: ``gpu03`` of ``gpu[03-07,12],login``."""
    first = re.match(r"([^\[,]*)(?:\[([^\]]*)\])?([^\[,]*)", hosts)
    assert first is not None  # every part may be empty
    return first[1] + re.split(r"[,-]", first[2] or "")[0] + first[3]


def _record_changes(snapshot: dict[str, str]) -> None:
    for name in os.environ.keys() | snapshot.keys():
        if os.environ.get(name) != snapshot.get(name):
            _original.setdefault(name, snapshot.get(name))


def _env(variable: str, slurm: str, default: str) -> str:
    """Returns torchrun's and DeepSpeed's variable, else that of a SLURM step of several tasks."""
    return os.environ.get(variable) or (os.environ.get(slurm, default) if is_slurm_step() else default)
