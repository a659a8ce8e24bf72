"""Who this process is among the processes of the run, and what they say to one another."""

import atexit
import gc
import importlib
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from arctic_training.distributed import environment

T = TypeVar("T")

_TIMEOUT = timedelta(hours=1)
_BEAT = 5.0
"""Seconds between two signs of life of a process that the others wait for."""
_SILENCE = 300.0
"""Seconds without one after which the others give up."""

_DEPRECATED = r"`torch\.distributed\..* is deprecated"

_place: int | None = None
"""`local_rank` where the environment says another, for DeepSpeed, or none."""
_store: Store | None = None
_found = False
"""Whether the process group was there before the run, and so stays."""
_groups: dict[int, dist.ProcessGroup] = {}
_turns = 0
_left = False


class Destroyable(Protocol):
    """An engine, as far as its end goes."""

    def destroy(self) -> None: ...


def rank() -> int:
    """Which of the run's processes this is: by the process group where there is one, else by the launcher."""
    return dist.get_rank() if dist.is_initialized() else environment.rank()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else environment.world_size()


def local_rank() -> int:
    """Which of the run's processes on this machine."""
    return environment.local_rank() if _place is None else _place


def is_main() -> bool:
    return rank() == 0


def device() -> torch.device:
    """Where this process computes."""
    return torch.device("cuda", _gpu()) if torch.cuda.is_available() else torch.device("cpu")


def is_initialized() -> bool:
    return _store is not None and dist.is_initialized()


def init_process_group() -> None:
    """Join the other processes of the run; may be called again. One process alone needs neither port nor variable.

    Must come before DeepSpeed is first used: it then takes this process group as it is. A process group that the
    program has made is that of the run, and stays when the run ends.
    """
    global _store, _found, _place
    joined = is_initialized()
    if not joined:
        _found = dist.is_initialized()
        if _found and not environment.has_local_rank():
            _place = _among_neighbours(dist.distributed_c10d._get_default_store())
    _export_env()
    if joined:
        return
    atexit.unregister(_destroy)  # of an earlier run in this process: leaving once is enough
    atexit.register(_destroy)
    backend = "gloo"
    if torch.cuda.is_available():
        if _gpu() >= (there := torch.cuda.device_count()):
            raise RuntimeError(f"process {local_rank()} of this machine has no GPU: there are {there}")
        torch.cuda.set_device(_gpu())
        backend = "cpu:gloo,cuda:nccl"
    else:
        environment.set_env_default("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for others, and warn
    # Imported later, its default arguments would hold the process group beyond its end, and threads that still run in
    # it when the interpreter ends abort the process ("terminate called without an active exception") after a good run.
    importlib.import_module("deepspeed")
    hook = sys.excepthook
    if _found:
        _store = dist.distributed_c10d._get_default_store()
    elif world_size() == 1:
        _store = HashStore()
        dist.init_process_group(backend, store=_store, rank=0, world_size=1)
    elif _left:
        raise RuntimeError("this process has left the run; several processes cannot meet a second time")
    else:
        meeting, number, count = next(rendezvous("env://", rank(), world_size(), timeout=_TIMEOUT))
        _store = PrefixStore("arctic_training", meeting)
        dist.init_process_group(backend, store=_store, rank=number, world_size=count, timeout=_TIMEOUT)
    sys.excepthook = hook  # torch's own would say a rank before errors of a program that knows of none


def init_deepspeed() -> None:
    """`init_process_group`, and let DeepSpeed use the same process group, quietly and without compiling anything."""
    init_process_group()
    warnings.filterwarnings("ignore", _DEPRECATED, FutureWarning)  # meant for DeepSpeed
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator

    if comm.is_initialized():
        return
    theirs: Any = sys.modules["deepspeed.comm.torch"]
    # its shared-memory all-reduce costs a C++ build at first use and leaves 66 MB in /dev/shm for each process
    build, theirs.build_shm_op = theirs.build_shm_op, lambda: None
    comm.comm.cdb = None
    try:
        comm.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    finally:
        theirs.build_shm_op = build


def store() -> Store | None:
    """Returns the store of the run's processes; None before `init_process_group`."""
    return _store


def clone_store() -> Store | None:
    """To the store of the run's processes, for a thread of its own: one that waits there holds up no other's. None
    where the store, which the script that uses this package may have made, has no more than one."""
    store: Any = _store  # torch's types leave the method out
    try:
        return store.clone() if store is not None else None
    except (RuntimeError, NotImplementedError):
        return None


def sequence_parallel_group(size: int) -> dist.ProcessGroup:
    """This process among ``size`` with consecutive ranks. All processes of the run must ask for it first together."""
    if size not in _groups:
        _groups[size] = dist.new_subgroups(size, timeout=_TIMEOUT)[0]  # type: ignore[no-untyped-call]
    return _groups[size]


def barrier() -> None:
    """Wait until every process is here."""
    if is_distributed():
        dist.all_reduce(torch.zeros(1))  # dist.barrier would take a GPU's stream, and guess which


def destroy_process_group(engines: Iterable[Destroyable] = (), *, failed: bool = False) -> None:
    """Leave the other processes in the order that is safe: all arrive, engines end, then the group.

    After an exception nobody is waited for. Loader workers must have been stopped before.
    """
    if not failed:
        barrier()
    for engine in engines:
        engine.destroy()
    _destroy()


def restore_environment() -> None:
    """Restores the process's environment and its warnings as they were before `init_process_group`."""
    environment.restore_env()
    said = ("ignore", re.compile(_DEPRECATED, re.IGNORECASE), FutureWarning, None, 0)
    if said in warnings.filters:
        warnings.filters.remove(said)  # type: ignore[attr-defined]  # a list, though typed as a sequence


def _destroy() -> None:
    global _store, _left, _place
    atexit.unregister(_destroy)
    if is_initialized():
        comm: Any = sys.modules.get("deepspeed.comm.comm")
        deepspeed = comm is not None and comm.cdb is not None
        if _found:
            for group in _groups.values():
                dist.destroy_process_group(group)
        elif deepspeed:
            comm.destroy_process_group()
        else:
            dist.destroy_process_group()
        if deepspeed:
            comm.cdb = None
        _left = not _found
    _groups.clear()
    _store, _place = None, None
    restore_environment()
    gc.collect()  # what is left of engines holds the group, and its threads


def is_distributed() -> bool:
    """Whether the run has more than one process."""
    return is_initialized() and dist.get_world_size() > 1


def _gpu() -> int:
    """The number of this process's GPU among those it sees: of a SLURM task with one of its own (``--gpus-per-task``)
    the only one."""
    return 0 if torch.cuda.device_count() == 1 and environment.is_slurm_step() else local_rank()


def _among_neighbours(store: Store) -> int:
    """`local_rank` in a process group whose maker did not say it: how many before this process are on its machine."""
    hosts = PrefixStore("arctic_training/hosts", store)
    hosts.set(str(rank()), socket.gethostname())
    own = hosts.get(str(rank()))
    return sum(hosts.get(str(other)) == own for other in range(rank()))


def _export_env() -> None:
    """DeepSpeed and torch read these variables themselves."""
    global _place
    if torch.cuda.is_available() and _gpu() != local_rank():
        _place = local_rank()
    said = {"RANK": rank(), "WORLD_SIZE": world_size(), "LOCAL_RANK": local_rank()}
    if torch.cuda.is_available():
        said["LOCAL_RANK"] = _gpu()  # DeepSpeed takes it for the number of the GPU
    for name, value in said.items():
        environment.set_env(name, str(value))
    # without it DeepSpeed runs numactl in a new process for every reduction of stage 3 on CPUs
    environment.set_env_default("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))
    environment.set_master_address()
