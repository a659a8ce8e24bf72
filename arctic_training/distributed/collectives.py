"""Collectives over the processes of a run; each gives a sign of life."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from arctic_training.distributed import process_group
from arctic_training.distributed.heartbeat import no_timeout, record_heartbeat
from arctic_training.distributed.process_group import (
    is_distributed,
    local_rank,
    rank,
    sequence_parallel_group,
    world_size,
)

T = TypeVar("T")

_BEAT = 5.0
"""Seconds between two signs of life of a process that the others wait for."""
_SILENCE = 300.0
"""Seconds without one after which the others give up."""
_turns = 0


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of ``tensor`` over all processes, put in its place."""
    if is_distributed():
        dist.all_reduce(tensor)
        record_heartbeat()
    return tensor


def all_gather_object(value: T, among: int = 0) -> list[T]:
    """Returns the values of all ranks in their order, on every rank; or of the `sequence_parallel_group` of ``among``
    ranks. For small picklable values."""
    if not is_distributed():
        return [value]
    values: list[T | None] = [None] * (among or world_size())
    dist.all_gather_object(values, value, group=sequence_parallel_group(among) if among else None)
    record_heartbeat()
    return values  # type: ignore[return-value]


def broadcast_object(value: T, source: int = 0) -> T:
    """What the process ``source`` holds, on every process."""
    if not is_distributed():
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=source, device=torch.device("cpu"))
    record_heartbeat()
    return held[0]  # type: ignore[no-any-return]


@contextmanager
def main_process_first(*, each_machine: bool = False) -> Iterator[bool]:
    """One process runs the block first, the others when it is done; yields whether this is the one.

    However long it takes: the others look for its sign of life, not at a clock. ``each_machine`` lets one process of
    each machine go first, and at the end waits for all machines. Raises RuntimeError in the others when a first one
    fails or is not heard of any more.
    """
    global _turns
    store = process_group.store()
    if not is_distributed() or store is None:
        with no_timeout("what one process does first"):
            yield True
        return
    _turns += 1
    machine = socket.gethostname() if each_machine else ""
    machines = sorted(set(all_gather_object(machine))) if each_machine else [machine]
    keys = {name: f"main_first/{_turns}/{name}" for name in machines}
    if (local_rank() if each_machine else rank()) != 0:
        _await(store, keys[machine])
        yield False
    else:
        with _leading(store, keys[machine]):
            yield True
    for key in keys.values():
        _await(store, key)


@contextmanager
def _leading(store: Store, key: str) -> Iterator[None]:
    """Inside, a thread gives the sign of life for which those look that wait for ``key``."""
    done = threading.Event()
    pulse = threading.Thread(target=_beat, args=(store, key, done), daemon=True)
    pulse.start()
    said = "failed"
    try:
        with no_timeout("what one process does first"):
            yield
        said = "done"
    finally:
        done.set()
        pulse.join()
        store.set(key, said)


def _beat(store: Store, key: str, done: threading.Event) -> None:
    while not done.wait(_BEAT):
        store.add(f"{key}/beat", 1)


def _await(store: Store, key: str) -> None:
    beats, heard, pause = 0, time.monotonic(), 0.005
    while not store.check([key]):
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
        if (now := store.add(f"{key}/beat", 0)) != beats:
            beats, heard = now, time.monotonic()
            record_heartbeat()
        elif time.monotonic() - heard > _SILENCE:
            raise RuntimeError(f"the first process has given no sign of life for {_SILENCE:.0f} s")
    if store.get(key) != b"done":
        raise RuntimeError("the first process failed; its own message says why")
