"""The environment of this process: what launchers say in it, and what a run says in it for the libraries that read it.

A run is often a guest in a process: what it set is given back when it ends, so that nothing that is started there
later is taken for a part of it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

_before: dict[str, str | None] = {}
"""What was there of what is lent."""
_beginnings: list[dict[str, str]] = []
"""The whole environment when each `track_env` that is under way began."""


def set_env(name: str, value: str) -> None:
    """Set a variable until `restore_env`."""
    if os.environ.get(name) != value:
        _before.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def set_env_default(name: str, value: str) -> None:
    """`set_env`, unless it is set."""
    if name not in os.environ:
        set_env(name, value)


@contextmanager
def track_env() -> Iterator[None]:
    """What is set inside, by libraries that speak to themselves or to one another so, is lent too."""
    beginning = dict(os.environ)
    _beginnings.append(beginning)
    try:
        yield
    finally:
        _note(beginning)
        _beginnings[:] = [other for other in _beginnings if other is not beginning]


def restore_env() -> None:
    """Leave every variable as it was before it was lent."""
    for beginning in _beginnings:
        _note(beginning)
    while _before:
        name, value = _before.popitem()
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for beginning in _beginnings:
        beginning.clear()
        beginning.update(os.environ)


def rank() -> int:
    """Which process this is, as its launcher says; 0 without one."""
    return int(_said("RANK", "SLURM_PROCID", "0"))


def world_size() -> int:
    """Of how many, as its launcher says; 1 without one."""
    return int(_said("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "1"))


def local_rank() -> int:
    """Which of those on this machine."""
    return int(_said("LOCAL_RANK", "SLURM_LOCALID", "0"))


def has_local_rank() -> bool:
    return bool(_said("LOCAL_RANK", "SLURM_LOCALID", ""))


def is_slurm_step() -> bool:
    """Whether SLURM started this process as one of several; a step of one task says no more than a shell's."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def set_master_address() -> None:
    """Where the processes of a SLURM step meet, which SLURM leaves to them."""
    if world_size() > 1 and "SLURM_STEP_NODELIST" in os.environ:
        set_env_default("MASTER_ADDR", first_slurm_host(os.environ["SLURM_STEP_NODELIST"]))
        set_env_default("MASTER_PORT", str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20_000))


def first_slurm_host(hosts: str) -> str:
    """The first machine of SLURM's list: ``gpu[03-07,12],login`` begins with ``gpu03``."""
    first = re.match(r"([^\[,]*)(?:\[([^\]]*)\])?([^\[,]*)", hosts)
    assert first is not None  # every part may be empty
    return first[1] + re.split(r"[,-]", first[2] or "")[0] + first[3]


def _note(beginning: dict[str, str]) -> None:
    for name in os.environ.keys() | beginning.keys():
        if os.environ.get(name) != beginning.get(name):
            _before.setdefault(name, beginning.get(name))


def _said(variable: str, slurm: str, alone: str) -> str:
    """torchrun's and DeepSpeed's variable, else that of a SLURM step of several tasks."""
    return os.environ.get(variable) or (os.environ.get(slurm, alone) if is_slurm_step() else alone)
