"""Loaders: iterate over micro-batches from any position of any epoch."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from arctic_training.data.batching.sampler import GlobalOrder
from arctic_training.data.batching.target_column import TargetColumn
from arctic_training.data.formats.row_error import describe_error
from arctic_training.data.preparation import workers
from arctic_training.data.preparation.samples import Indices, Sample, SampleList
from arctic_training.errors.types import SampleError, WorkerError
from arctic_training.loss.targets import IGNORE_INDEX

Batch = Any
"""A micro-batch as a collate function returns it: a mapping of tensors for most trainers, or whatever a loss takes."""
Collate = Callable[[list[Sample]], Batch]
Column = npt.NDArray[Any] | TargetColumn
"""An entry for each sample, ``[samples, ...]``, or for each label of each sample."""


class Loader(ABC):
    """Base of loaders. Each iteration starts at the position of `seek`, and uses no random generator but its own."""

    dataset: Any
    """The samples by index, before they are packed."""

    @abstractmethod
    def __len__(self) -> int:
        """Returns the micro-batches of an epoch on this data rank, the same on every rank; 0 for an endless epoch."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """Yields the micro-batches from the current position to the end of the epoch."""

    @abstractmethod
    def seek(self, epoch: int, row: int) -> None:
        """Sets where the next iteration starts: at ``row`` of the order of ``epoch``, counted over all data ranks."""

    @property
    def stride(self) -> int:
        """Rows of one micro-batch on all data ranks together; `seek` takes multiples of it."""
        return 1

    @property
    def rows(self) -> int:
        """Rows that an epoch reads; 0 for an endless epoch."""
        return len(self) * self.stride

    def rank_indices(self, row: int) -> range:
        """Returns this rank's positions in the order, in the micro-batches that begin at ``row``.

        Raises NotImplementedError where batches have no such positions.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say which rows are in a batch")

    def close(self) -> None:  # noqa: B027  most loaders hold nothing
        """Ends worker processes, if there are any. The loader may be iterated again."""

    def state_dict(self) -> dict[str, Any]:
        """Returns a position that epoch and row do not give, such as that in a stream."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:  # noqa: B027
        """Continues at a position from `state_dict`."""


class OrderedLoader(Loader):
    """Base of loaders whose rows are read by index, in a `GlobalOrder`."""

    def __init__(self, dataset: Sized, order: GlobalOrder) -> None:
        self.dataset, self.order = dataset, order
        self._position = (0, 0)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def stride(self) -> int:
        return self.order.global_micro_batch_size

    @property
    def rows(self) -> int:
        return self.order.rows

    def seek(self, epoch: int, row: int) -> None:
        self._position = (epoch, row)

    def rank_indices(self, row: int) -> range:
        return self.order.rank_indices(row)

    def positions(self) -> Iterator[tuple[int, int]]:
        """Yields (epoch, row) of each micro-batch from the current position on."""
        epoch, start = self._position
        return ((epoch, row) for row in self.order.batch_starts(start))


class IndexedLoader(OrderedLoader):
    """Collates micro-batches of samples by index, in worker processes or in this one."""

    def __init__(
        self,
        dataset: SampleList,
        order: GlobalOrder,
        collate: Collate,
        *,
        make_padding_sample: Callable[[Sample], Sample],
        groups: Sequence[Indices] | None = None,
        min_rows: int = 1,
        workers: int = 0,
        prefetch: int = 4,
    ) -> None:
        """``groups[i]`` are the samples of row ``i`` of the order, where several are packed into a row.

        A batch with fewer than ``min_rows`` samples, at the end of an epoch, is filled up with
        ``make_padding_sample(dataset[0])``, which has no labels.
        """
        super().__init__(dataset, order)
        self.groups = groups
        self._reader = _Reader(dataset, order, groups, collate, make_padding_sample, min_rows=min_rows)
        self._workers, self._prefetch = workers, prefetch
        self._running: Iterator[Batch] | None = None

    def add_columns(self, columns: Mapping[str, Column]) -> None:
        """Adds keys to the batches, which are mappings: the entries of each column that belong to a batch.

        Called before the first iteration. The fingerprint of the samples does not depend on them.
        """
        self._reader.columns.update(columns)

    def in_order(self) -> "IndexedLoader":
        """Returns a loader that reads every row once, in the order of the samples."""
        order = replace(self.order, shuffle=False, drop_last=False, accumulation_steps=1, epoch_length=0)
        reader = self._reader
        return IndexedLoader(
            self.dataset,
            order,
            reader.collate,
            make_padding_sample=reader.make_padding_sample,
            groups=self.groups,
            min_rows=reader.min_rows,
            workers=self._workers,
        )

    def samples(self, epoch: int, row: int) -> list[int]:
        """Returns the indices in `dataset` of this rank's micro-batch, in those that begin at ``row``."""
        return self._reader.samples((epoch, row))

    def __iter__(self) -> Iterator[Batch]:
        """Yields micro-batches. Raises `SampleError` for one that cannot be made, `WorkerError` for a dead worker."""
        positions = self.positions()
        if not self._workers and not torch.cuda.is_available():
            for position in positions:
                yield raise_if_failed(self._reader[position])
            return
        loader: DataLoader[Batch] = DataLoader(
            self._reader,
            batch_size=None,
            sampler=positions,
            collate_fn=lambda batch: batch,
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            # a worker inherits the samples and whatever `collate` holds; a user's need not be picklable
            multiprocessing_context="fork" if self._workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(workers.start_worker, os.getpid()),
            generator=torch.Generator().manual_seed(0),  # else creating the iterator uses the model's random generator
        )
        self.close()
        with workers.without_sigchld_handler(), workers.socket_folder(), workers.without_garbage():
            self._running = running = iter(loader)
        try:
            yield from map(raise_if_failed, running)
        except (RuntimeError, OSError, EOFError) as error:
            if died := workers.describe_dead_worker(running):
                raise WorkerError(died) from error
            raise

    def close(self) -> None:
        running, self._running = self._running, None
        if hasattr(running, "_shutdown_workers"):
            workers.shutdown_workers(running)


@dataclass(eq=False)
class _Reader(Dataset[Batch]):
    """Makes the micro-batch of a position; this is what worker processes hold."""

    dataset: SampleList
    order: GlobalOrder
    groups: Sequence[Indices] | None
    collate: Collate
    make_padding_sample: Callable[[Sample], Sample]
    columns: dict[str, Column] = field(default_factory=dict)
    """Columns of the samples, by the key that they have in a batch."""
    min_rows: int = 1

    def samples(self, position: tuple[int, int]) -> list[int]:
        rows = self.order.batch(*position)
        if self.groups is None:
            return [int(row) for row in rows]
        return [int(sample) for row in rows for sample in self.groups[int(row)]]

    def __getitem__(self, position: tuple[int, int]) -> Batch:
        """Returns the batch, or `FailedBatch`: an exception in a worker would lose its type and attributes."""
        indices, number = self.samples(position), -1
        try:
            rows = []
            for number in indices:
                rows.append(self.dataset[number])
            number, known = -1, [*indices]
            if missing := max(self.min_rows - len(rows), 0):
                rows += [self.make_padding_sample(self.dataset[0])] * missing
                indices += [0] * missing
            batch = self.collate(rows)
            columns = {}
            for name, column in self.columns.items():  # a row that only fills a batch has no labels
                columns[name] = torch.from_numpy(column[known if isinstance(column, TargetColumn) else indices])
            return {**batch, **columns} if columns else batch
        except MemoryError:
            raise
        except Exception as error:
            if number >= 0:
                return FailedBatch(f"sample {number}: {describe_error(error)}")
            return FailedBatch(
                f"a batch of samples {', '.join(map(str, indices))} cannot be made ({describe_error(error)})"
            )


@dataclass
class FailedBatch:
    """Stands for a batch that cannot be made."""

    why: str


def raise_if_failed(batch: Batch) -> Batch:
    """Returns a batch. Raises `SampleError` for a failed one."""
    if isinstance(batch, FailedBatch):
        raise SampleError(batch.why)
    return batch


def without_targets(sample: Sample) -> Sample:
    """Returns a sample that adds nothing to the loss of a batch: every label is -100."""
    if isinstance(sample, Mapping) and "labels" in sample:
        return {**sample, "labels": np.full_like(sample["labels"], IGNORE_INDEX)}
    return sample
