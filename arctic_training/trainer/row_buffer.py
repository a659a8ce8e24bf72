"""Rows that a trainer keeps between steps, such as samples to start from again, or a queue of negatives."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, overload

import torch
from torch import Tensor

from arctic_training.distributed import process_group


class RowBuffer:
    """The newest rows of a run, which are part of every checkpoint.

    On all ranks together they are at most ``capacity``, rounded up to a multiple of the number of ranks. A rank keeps
    those that it adds itself.

    A trainer class declares it, and each trainer has its own, which is empty at first::

        class Mine(TensorTrainer):
            replay = RowBuffer(10_000)

            def loss(self, batch):
                self.replay.add(batch["rows"])
                earlier = self.replay.rows

    A run that resumes on another number of processes shares the rows of all ranks out again. An evaluation is to add
    none: it leaves no trace.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: Tensor | None = None
        """The rows that this rank keeps, the oldest first: ``[n, ...]``; None before the first ones."""
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> "RowBuffer": ...

    def __get__(self, instance: object | None, owner: type) -> "RowBuffer":
        if instance is None:
            return self
        own: RowBuffer = instance.__dict__.setdefault(self._name, RowBuffer(self.capacity))
        return own

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def add(self, rows: Tensor) -> None:
        """Appends ``rows``, ``[n, ...]``, without their gradient, and drops the oldest of those that are too many."""
        rows = rows.detach()
        kept = rows if self.rows is None else torch.cat([self.rows.to(rows.device), rows])
        self.rows = kept[max(len(kept) - -(-self.capacity // process_group.world_size()), 0) :].clone()

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows of this rank."""
        return {} if self.rows is None else {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restores the rows of this rank."""
        self.rows = state.get("rows")

    def load_sharded_state_dict(self, states: Sequence[Mapping[str, Any]], /) -> None:
        """Shares the rows of all ranks that saved out among those of this run, the oldest first."""
        parts = [state["rows"] for state in states if "rows" in state]
        self.rows = None
        if parts:
            ages = torch.cat([torch.arange(-len(part), 0) for part in parts])
            order = ages.argsort(stable=True)[process_group.rank() :: process_group.world_size()]
            rows = torch.cat([part.cpu() for part in parts])[order]
            self.add(rows)


def row_buffers(trainer: object) -> dict[str, RowBuffer]:
    """Returns the buffers that the class of ``trainer`` and its bases declare, by name."""
    names = {name for base in type(trainer).__mro__ for name, one in vars(base).items() if isinstance(one, RowBuffer)}
    return {name: getattr(trainer, name) for name in sorted(names)}
