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
from arctic_training.distributed.heartbeat import beat, unhurried
from arctic_training.distributed.process_group import local_rank, neighbours, rank, several, world_size

T = TypeVar("T")

_BEAT = 5.0
"""Seconds between two signs of life of a process that the others wait for."""
_SILENCE = 300.0
"""Seconds without one after which the others give up."""
_turns = 0


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of ``tensor`` over all processes, put in its place."""
    if several():
        dist.all_reduce(tensor)
        beat()
    return tensor


def gather_objects(value: T, among: int = 0) -> list[T]:
    """What each process holds, in the order of ranks, on every process; or among so many `neighbours`. Small picklable
    values."""
    if not several():
        return [value]
    values: list[T | None] = [None] * (among or world_size())
    dist.all_gather_object(values, value, group=neighbours(among) if among else None)
    beat()
    return values  # type: ignore[return-value]


def broadcast_object(value: T, source: int = 0) -> T:
    """What the process ``source`` holds, on every process."""
    if not several():
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=source, device=torch.device("cpu"))
    beat()
    return held[0]  # type: ignore[no-any-return]


@contextmanager
def main_first(*, each_machine: bool = False) -> Iterator[bool]:
    """One process runs the block first, the others when it is done; yields whether this is the one.

    However long it takes: the others look for its sign of life, not at a clock. ``each_machine`` lets one process of
    each machine go first, and at the end waits for all machines. Raises RuntimeError in the others when a first one
    fails or is not heard of any more.
    """
    global _turns
    store = process_group.store()
    if not several() or store is None:
        with unhurried("what one process does first"):
            yield True
        return
    _turns += 1
    machine = socket.gethostname() if each_machine else ""
    machines = sorted(set(gather_objects(machine))) if each_machine else [machine]
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
        with unhurried("what one process does first"):
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
            beat()
        elif time.monotonic() - heard > _SILENCE:
            raise RuntimeError(f"the first process has given no sign of life for {_SILENCE:.0f} s")
    if store.get(key) != b"done":
        raise RuntimeError("the first process failed; its own message says why")
