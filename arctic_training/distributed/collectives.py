"""Collectives over the ranks of a run. Each records a heartbeat."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.autograd.function import FunctionCtx, once_differentiable

from arctic_training.distributed import process_group
from arctic_training.distributed.heartbeat import no_timeout, record_heartbeat
from arctic_training.distributed.process_group import (
    is_distributed,
    local_rank,
    rank,
    rank_group,
    world_size,
)

T = TypeVar("T")

_BEAT = 5.0
"""Seconds between two heartbeats of a process that the others wait for."""
_SILENCE = 300.0
"""Seconds without a heartbeat after which the others give up."""
_num_turns = 0


def all_reduce(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Sums ``tensor`` ([...], any numeric dtype) over all ranks, or those of ``group``, in place, and returns it."""
    if is_distributed():
        dist.all_reduce(tensor, group=group)
        record_heartbeat()
    return tensor


def all_gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates ``tensor`` ``[n, ...]``, whose ``n`` may differ from rank to rank, in the order of ranks, without a
    gradient: ``[sum of n, ...]``."""
    if not is_distributed():
        return tensor
    counts = tensor.new_zeros(world_size(), dtype=torch.int64)
    counts[rank()] = len(tensor)
    longest = max(int(all_reduce(counts).max()), 1)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    parts = all_gather_with_grad(padded).chunk(world_size())
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])


def all_gather_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates ``tensor`` ``[n, ...]``, of one shape on every rank, in the order of ranks: ``[world * n, ...]``.

    The gradient of a part is the sum over all ranks of the gradients of their losses by it, so that a loss that is
    averaged over the ranks has the gradient of one process with all rows.
    """
    if not is_distributed():
        return tensor
    gathered: torch.Tensor = _AllGather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


class _AllGather(torch.autograd.Function):
    """torch has it in `torch.distributed.nn.functional`, deprecated, and in a private module that replaces it."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: torch.Tensor) -> torch.Tensor:
        gathered = tensor.new_empty(world_size() * tensor.shape[0], *tensor.shape[1:])
        dist.all_gather_single(gathered, tensor.contiguous())
        record_heartbeat()
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *upstream: torch.Tensor) -> torch.Tensor:
        total = upstream[0].clone(memory_format=torch.contiguous_format)
        return all_reduce(total).chunk(world_size())[rank()]


def all_gather_object(value: T, group_size: int = 0) -> list[T]:
    """Returns the values of all ranks in their order, on every rank. For small picklable values.

    With ``group_size`` those of the `rank_group` of so many ranks.
    """
    if not is_distributed():
        return [value]
    values: list[T | None] = [None] * (group_size or world_size())
    dist.all_gather_object(values, value, group=rank_group(group_size) if group_size else None)
    record_heartbeat()
    return values  # type: ignore[return-value]


def broadcast_object(value: T, source: int = 0) -> T:
    """Returns, on every rank, the value that the rank ``source`` passed."""
    if not is_distributed():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=source, device=torch.device("cpu"))
    record_heartbeat()
    return values[0]  # type: ignore[no-any-return]


@contextmanager
def main_process_first(*, each_machine: bool = False) -> Iterator[bool]:
    """Runs the block on the main process first, and on the others when it is done; yields whether this is the first.

    It may take any time: the others watch the first one's heartbeat, not a clock. With ``each_machine`` the first
    process of each machine goes first, and at the end all machines are waited for. Raises RuntimeError on the other
    ranks when a first one fails or its heartbeat stops.
    """
    global _num_turns
    store = process_group.store()
    if not is_distributed() or store is None:
        with no_timeout("main_process_first"):
            yield True
        return
    _num_turns += 1
    machine = socket.gethostname() if each_machine else ""
    machines = sorted(set(all_gather_object(machine))) if each_machine else [machine]
    keys = {name: f"main_first/{_num_turns}/{name}" for name in machines}
    if (local_rank() if each_machine else rank()) != 0:
        _wait(store, keys[machine])
        yield False
    else:
        with _go_first(store, keys[machine]):
            yield True
    for key in keys.values():
        _wait(store, key)


@contextmanager
def _go_first(store: Store, key: str) -> Iterator[None]:
    """Sends heartbeats to those that wait for ``key`` while the block runs, and then whether it succeeded."""
    over = threading.Event()
    thread = threading.Thread(target=_send_heartbeats, args=(store, key, over), daemon=True)
    thread.start()
    outcome = "failed"
    try:
        with no_timeout("main_process_first"):
            yield
        outcome = "done"
    finally:
        over.set()
        thread.join()
        store.set(key, outcome)


def _send_heartbeats(store: Store, key: str, over: threading.Event) -> None:
    while not over.wait(_BEAT):
        store.add(f"{key}/beat", 1)


def _wait(store: Store, key: str) -> None:
    beats, silence, woke, pause = 0, 0.0, time.monotonic(), 0.005
    while not store.check([key]):
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
        now = time.monotonic()
        # a machine that sleeps, or a process that is stopped, is silent itself, as the first process then may be too
        silence, woke = silence + min(now - woke, _BEAT), now
        if (sent := store.add(f"{key}/beat", 0)) != beats:
            beats, silence = sent, 0.0
            record_heartbeat()
        elif silence > _SILENCE:
            raise RuntimeError(f"the first process has sent no heartbeat for {_SILENCE:.0f} s")
    if store.get(key) != b"done":
        raise RuntimeError("the first process failed; its own message says why")
