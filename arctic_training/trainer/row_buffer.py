"""Rows that a trainer keeps between steps, such as samples to start from again, or a queue of negatives."""

from collections.abc import Mapping
from typing import Any, Self, overload

import torch
from torch import Tensor

from arctic_training.distributed import collectives, process_group


class RowBuffer:
    """The newest rows of a run, at most ``capacity``, which every rank holds and every checkpoint has once.

    A trainer class declares it, and each trainer has its own, which is empty at first::

        class Mine(TensorTrainer):
            replay = RowBuffer(10_000)

            def loss(self, batch):
                self.replay.add(batch["rows"], batch["draw"])
                earlier = self.replay.rows

    What a loss takes of it does not depend on how the global batch is split if the rows of a window are added with its
    last micro-batch. An evaluation is to add none: it leaves no trace.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: Tensor | None = None
        """The rows that are kept, the oldest first: ``[n, ...]``; None before the first ones."""
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

    def add(self, rows: Tensor, draw: Tensor | None = None) -> None:
        """Appends the ``rows`` of all ranks, ``[n, ...]`` of each, without gradient, and drops the oldest beyond the
        capacity. All ranks call it together.

        They are in the order of ``draw``, the numbers of the rows of a batch, int64 ``[n]``; without it, of the ranks.
        """
        rows = collectives.all_gather_rows(rows.detach())
        if draw is not None:
            rows = rows[collectives.all_gather_rows(draw).argsort()]
        kept = rows if self.rows is None else torch.cat([self.rows.to(rows.device), rows])
        self.rows = kept[max(len(kept) - self.capacity, 0) :].clone()

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows on the first rank, and nothing on the others."""
        return {"rows": self.rows} if self.rows is not None and process_group.is_main() else {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restores the rows of the first rank on every rank. All ranks call it together."""
        self.rows = collectives.broadcast_object(state.get("rows"))


def row_buffers(trainer: object) -> dict[str, RowBuffer]:
    """Returns the buffers that the class of ``trainer`` and its bases declare, by name."""
    names = {name for base in type(trainer).__mro__ for name, one in vars(base).items() if isinstance(one, RowBuffer)}
    return {name: getattr(trainer, name) for name in sorted(names)}
