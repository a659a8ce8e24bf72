"""The process group of a run: setup, rank and world size, devices, destruction."""

import atexit
import gc
import importlib
import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from arctic_training.distributed import environment

_TIMEOUT = timedelta(hours=1)
_DEPRECATED = r"`torch\.distributed\..* is deprecated"

_local_rank: int | None = None
"""The local rank where the environment has none, or another one for DeepSpeed."""
_store: Store | None = None
_is_external = False
"""Whether the program made the process group before the run, and so keeps it."""
_groups: dict[int, dist.ProcessGroup] = {}
"""The group of consecutive ranks that this process is in, by its size."""
_has_left = False
"""Whether this process has destroyed a group of the run."""
_log_level: int | None = None
"""The level of DeepSpeed's logger before the run set another; None: it has not."""


class Destroyable(Protocol):
    """An engine, as far as `destroy_process_group` knows it."""

    def destroy(self) -> None:
        """Frees what the engine holds of the process group."""


def rank() -> int:
    """Returns the rank of this process: by the process group when there is one, else by the launcher."""
    return dist.get_rank() if dist.is_initialized() else environment.rank()


def world_size() -> int:
    """Returns the number of ranks: by the process group when there is one, else by the launcher."""
    return dist.get_world_size() if dist.is_initialized() else environment.world_size()


def local_rank() -> int:
    """Returns the rank among the processes of this machine."""
    return environment.local_rank() if _local_rank is None else _local_rank


def is_main() -> bool:
    """Returns whether this is rank 0."""
    return rank() == 0


def device() -> torch.device:
    """Returns the device of this process: its GPU, else the CPU."""
    return torch.device("cuda", _gpu_index()) if torch.cuda.is_available() else torch.device("cpu")


def is_initialized() -> bool:
    """Returns whether the run has a process group."""
    return _store is not None and dist.is_initialized()


def init_process_group() -> None:
    """Joins the other processes of the run; may be called again. One process alone needs neither port nor variable.

    Must come before DeepSpeed is first used, which then takes this process group as it is. A process group that the
    program has made becomes that of the run, and stays when the run ends. Raises RuntimeError when this process has no
    GPU of its own, or has left a group of several processes before.
    """
    global _store, _is_external, _local_rank
    joined = is_initialized()
    if not joined:
        _is_external = dist.is_initialized()
        if _is_external and not environment.has_local_rank():
            _local_rank = _count_lower_ranks_here(dist.distributed_c10d._get_default_store())
    _export_env()
    if joined:
        return
    atexit.unregister(_destroy)  # of an earlier run in this process: destroying once is enough
    atexit.register(_destroy)
    backend = "gloo"
    if torch.cuda.is_available():
        if _gpu_index() >= (count := torch.cuda.device_count()):
            raise RuntimeError(f"process {local_rank()} of this machine has no GPU: there are {count}")
        torch.cuda.set_device(_gpu_index())
        backend = "cpu:gloo,cuda:nccl"
    else:
        environment.set_env_default("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for others, and warn
    # Imported later, its default arguments would hold the process group beyond its end, and threads that still run in
    # it when the interpreter ends abort the process ("terminate called without an active exception") after a good run.
    with hidden_module("mlflow"):  # which DeepSpeed's autotuner imports for nothing: a second, and pandas
        importlib.import_module("deepspeed")
    hook = sys.excepthook
    if _is_external:
        _store = dist.distributed_c10d._get_default_store()
    elif world_size() == 1:
        _store = HashStore()
        dist.init_process_group(backend, store=_store, rank=0, world_size=1)
    elif _has_left:
        raise RuntimeError("this process has destroyed its process group; several processes cannot rendezvous again")
    else:
        met, number, count = next(rendezvous("env://", rank(), world_size(), timeout=_TIMEOUT))
        _store = PrefixStore("arctic_training", met)
        dist.init_process_group(backend, store=_store, rank=number, world_size=count, timeout=_TIMEOUT)
    sys.excepthook = hook  # torch's own puts a rank before errors of a program that knows of none


@contextmanager
def hidden_module(name: str) -> Iterator[None]:
    """Lets no import of the module ``name`` succeed inside, unless it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def init_deepspeed() -> None:
    """Calls `init_process_group` and has DeepSpeed use the same group, without messages and without compiling."""
    init_process_group()
    warnings.filterwarnings("ignore", _DEPRECATED, FutureWarning)  # meant for DeepSpeed
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator

    if comm.is_initialized():
        return
    backend: Any = sys.modules["deepspeed.comm.torch"]
    # its shared-memory all-reduce costs a C++ build at first use and leaves 66 MB in /dev/shm for each process
    build, backend.build_shm_op = backend.build_shm_op, lambda: None
    comm.comm.cdb = None
    try:
        comm.init_distributed(get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    finally:
        backend.build_shm_op = build


def set_log_level(level: int) -> None:
    """Sets the level of DeepSpeed's logger until `restore_environment`."""
    global _log_level
    log = logging.getLogger("DeepSpeed")
    _log_level = log.level if _log_level is None else _log_level
    log.setLevel(level)


def store() -> Store | None:
    """Returns the store of the run's processes; None before `init_process_group`."""
    return _store


def clone_store() -> Store | None:
    """Returns a second connection to the store, for a thread: a call that waits there blocks no other thread's.

    None where the store, which a program may have made, cannot be cloned.
    """
    store: Any = _store  # torch's types lack the method
    try:
        return store.clone() if store is not None else None
    except (RuntimeError, NotImplementedError):
        return None


def rank_group(size: int) -> dist.ProcessGroup:
    """Returns the group of ``size`` consecutive ranks that this rank is in. All ranks make the first call together."""
    if size not in _groups:
        _groups[size] = dist.new_subgroups(size, timeout=_TIMEOUT)[0]  # type: ignore[no-untyped-call]
    return _groups[size]


def barrier() -> None:
    """Waits until every rank has called it."""
    if is_distributed():
        dist.all_reduce(torch.zeros(1))  # dist.barrier would take a GPU's stream, and guess which


def destroy_process_group(engines: Iterable[Destroyable] = (), *, failed: bool = False) -> None:
    """Destroys ``engines`` and then the process group, once all ranks have arrived.

    With ``failed`` no rank is waited for. The workers of data loaders must have been stopped before.
    """
    if not failed:
        barrier()
    for engine in engines:
        engine.destroy()
    _destroy()


def restore_environment() -> None:
    """Restores environment variables, warning filters and the level of DeepSpeed's logger, which a run changes."""
    global _log_level
    if _log_level is not None:
        logging.getLogger("DeepSpeed").setLevel(_log_level)
        _log_level = None
    environment.restore_env()
    entry = ("ignore", re.compile(_DEPRECATED, re.IGNORECASE), FutureWarning, None, 0)
    if entry in warnings.filters:
        warnings.filters.remove(entry)  # type: ignore[attr-defined]  # a list, though typed as a sequence


def _destroy() -> None:
    global _store, _has_left, _local_rank
    atexit.unregister(_destroy)
    if is_initialized():
        comm: Any = sys.modules.get("deepspeed.comm.comm")
        deepspeed = comm is not None and comm.cdb is not None
        if _is_external:
            for group in _groups.values():
                dist.destroy_process_group(group)
        elif deepspeed:
            comm.destroy_process_group()
        else:
            dist.destroy_process_group()
        if deepspeed:
            comm.cdb = None
        _has_left = not _is_external
    _groups.clear()
    _store, _local_rank = None, None
    restore_environment()
    gc.collect()  # engines that are not collected yet hold the group and its threads


def is_distributed() -> bool:
    """Returns whether the run has a process group of more than one rank."""
    return is_initialized() and dist.get_world_size() > 1


def _gpu_index() -> int:
    """Returns the index of this process's GPU among those it sees: the local rank.

    It is 0 in a SLURM task that sees only a GPU of its own (``--gpus-per-task``).
    """
    return 0 if torch.cuda.device_count() == 1 and environment.is_slurm_step() else local_rank()


def _count_lower_ranks_here(store: Store) -> int:
    """Returns the local rank where no launcher set it: the number of lower ranks on the same machine."""
    hosts = PrefixStore("arctic_training/hosts", store)
    hosts.set(str(rank()), socket.gethostname())
    own = hosts.get(str(rank()))
    return sum(hosts.get(str(other)) == own for other in range(rank()))


def _export_env() -> None:
    """Sets the variables that DeepSpeed and torch read."""
    global _local_rank
    if torch.cuda.is_available() and _gpu_index() != local_rank():
        _local_rank = local_rank()
    variables = {"RANK": rank(), "WORLD_SIZE": world_size(), "LOCAL_RANK": local_rank()}
    if torch.cuda.is_available():
        variables["LOCAL_RANK"] = _gpu_index()  # DeepSpeed takes it for the index of the GPU
    for name, value in variables.items():
        environment.set_env(name, str(value))
    # without it DeepSpeed runs numactl in a new process for every reduction of stage 3 on CPUs
    environment.set_env_default("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))
    environment.set_master_address()
