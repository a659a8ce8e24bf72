"""What hands the loop its micro-batches, from any position of any epoch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from arctic_training.data.batching.sampler import GlobalOrder
from arctic_training.data.formats.row_error import where
from arctic_training.data.preparation import workers
from arctic_training.errors.types import SampleError, WorkerError
from arctic_training.loss.targets import IGNORE_INDEX

Batch = Any
Collate = Callable[[list[Any]], Batch]


class Loader(ABC):
    """Iterating starts where `seek` said, each time anew, and draws from no random generator but its own."""

    dataset: Any
    """The samples by index, before they are packed."""

    @abstractmethod
    def __len__(self) -> int:
        """Micro-batches of an epoch on this data rank, the same number on every rank; 0 when there is no end."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """The micro-batches from the sought position to the end of the epoch."""

    @abstractmethod
    def seek(self, epoch: int, row: int) -> None:
        """The next iteration begins with ``row`` of the order of ``epoch``, a number of rows on all data ranks."""

    @property
    def stride(self) -> int:
        """Rows that the micro-batches of all data ranks take of the order together; what `seek` counts in."""
        return 1

    @property
    def rows(self) -> int:
        """Rows that an epoch goes through; 0 when there is no end."""
        return len(self) * self.stride

    def places(self, row: int) -> range:
        """Where in the order this rank's rows stand of the micro-batches that begin at ``row``."""
        raise NotImplementedError(f"{type(self).__name__} does not say which rows are in a batch")

    def close(self) -> None:  # noqa: B027  most loaders hold nothing
        """End worker processes, if there are any. The loader may be iterated again."""

    def state_dict(self) -> dict[str, Any]:
        """A position that (epoch, row) does not tell, such as that in a stream."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:  # noqa: B027
        pass


class IndexedLoader(Loader):
    """Micro-batches of a data set whose rows can be read by index."""

    def __init__(
        self,
        dataset: Any,
        order: GlobalOrder,
        collate: Collate,
        *,
        make_padding_sample: Callable[[Any], Any],
        groups: Sequence[Any] | None = None,
        workers: int = 0,
        prefetch: int = 4,
    ) -> None:
        """``groups[i]`` are the samples of row ``i`` of the order, when a row is a pack of several.

        A rank whose share of the last global batch is empty gets ``blank(dataset[0])``: a sample without any target.
        """
        self.dataset, self.order, self.groups = dataset, order, groups
        self._reader = _Reader(dataset, order, groups, collate, make_padding_sample)
        self._workers, self._prefetch = workers, prefetch
        self._at = (0, 0)
        self._running: Any = None

    def __len__(self) -> int:
        return len(self.order)

    @property
    def stride(self) -> int:
        return self.order.whole

    @property
    def rows(self) -> int:
        return self.order.rows

    def seek(self, epoch: int, row: int) -> None:
        self._at = (epoch, row)

    def places(self, row: int) -> range:
        return self.order.places(row)

    def samples(self, epoch: int, row: int) -> list[int]:
        """The indices in `dataset` of what this rank's micro-batch holds, of those that begin at ``row``."""
        return self._reader.samples((epoch, row))

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._at
        places = ((epoch, row) for row in self.order.starts(start))
        if not self._workers and not torch.cuda.is_available():
            for place in places:
                yield raise_if_failed(self._reader[place])
            return
        loader: DataLoader[Batch] = DataLoader(
            self._reader,
            batch_size=None,
            sampler=places,
            collate_fn=_as_it_is,
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            # a worker inherits the samples and whatever `collate` holds; a user's need not be something pickle knows
            multiprocessing_context="fork" if self._workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=workers.worker_init_fn(),
            generator=torch.Generator().manual_seed(0),  # else making the iterator draws from the model's randomness
        )
        self.close()
        with workers.without_sigchld_handler(), workers.socket_folder():
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


class _Reader(Dataset[Batch]):
    """Makes the micro-batch of a position; this is what worker processes hold."""

    def __init__(
        self,
        dataset: Any,
        order: GlobalOrder,
        groups: Sequence[Any] | None,
        collate: Collate,
        make_padding_sample: Callable[[Any], Any],
    ) -> None:
        self.dataset, self.order, self.groups, self.collate, self.make_padding_sample = (
            dataset,
            order,
            groups,
            collate,
            make_padding_sample,
        )

    def samples(self, place: tuple[int, int]) -> list[int]:
        rows = self.order.batch(*place)
        if self.groups is None:
            return [int(row) for row in rows]
        return [int(sample) for row in rows for sample in self.groups[int(row)]]

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        """The batch, or `FailedBatch` where it cannot be made: what is raised in a worker loses what it was."""
        indices, number = self.samples(place), -1
        try:
            rows = []
            for number in indices:
                rows.append(self.dataset[number])
            number = -1
            return self.collate(rows or [self.make_padding_sample(self.dataset[0])])
        except MemoryError:
            raise
        except Exception as error:
            which = f"sample {number}" if number >= 0 else f"a batch of samples {', '.join(map(str, indices))}"
            return FailedBatch(f"{which} cannot be made ({where(error)})" if number < 0 else f"{which}: {where(error)}")


@dataclass
class FailedBatch:
    """What stands for a batch that cannot be made."""

    why: str


def raise_if_failed(batch: Batch) -> Batch:
    if isinstance(batch, FailedBatch):
        raise SampleError(batch.why)
    return batch


def _as_it_is(batch: Batch) -> Batch:
    return batch


def without_targets(sample: Any) -> Any:
    """A sample that takes part in a batch and adds nothing to its loss: every label is -100."""
    if isinstance(sample, Mapping) and "labels" in sample:
        return {**sample, "labels": np.full_like(sample["labels"], IGNORE_INDEX)}
    return sample
