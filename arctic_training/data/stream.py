"""Micro-batches out of streams: a buffer of rows at a time becomes tokens, packed and shuffled; the place is exact."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from arctic_training.data import json_rows, preparation
from arctic_training.data.loader import Batch, Loader
from arctic_training.data.sampler import GlobalOrder
from arctic_training.data.samples import Samples
from arctic_training.errors import DataError
from arctic_training.logging import logger


class Endless:
    """The rows of one source, again and again. Its position is that of the next row."""

    def __init__(self, rows: Any, name: str) -> None:
        """``rows`` is a `datasets.IterableDataset`."""
        self.rows, self.name = rows, name
        self._beginning = copy.deepcopy(rows.state_dict())
        self._start = self._beginning
        """Where the iteration begins that is not yet running; `datasets` itself does not tell it."""
        self._running: Iterator[dict[str, Any]] | None = None

    def __next__(self) -> dict[str, Any]:
        """Raises `DataError` when the source is empty."""
        for _ in range(2):
            if self._running is None:
                self.rows.load_state_dict(copy.deepcopy(self._start))
                self._running = iter(self.rows)
            for row in self._running:
                return row
            self.load_state_dict(self._beginning)
        raise DataError(f"{self.name}: there are no rows")

    def state_dict(self) -> Any:
        return copy.deepcopy(self._start if self._running is None else self.rows.state_dict())

    def load_state_dict(self, state: Any) -> None:
        self._start, self._running = state, None


@dataclass
class Buffer:
    """What was read at one time, in the order in which it is handed out."""

    number: int
    """How many were read before it."""
    position: list[Any]
    """Where each source stood before it was read."""
    samples: Any
    groups: Sequence[Any] | None
    order: GlobalOrder

    def batch(self, index: int) -> list[Any]:
        rows = [int(row) for row in self.order.batch(self.number, index * self.order.whole)]
        indices = rows if self.groups is None else [int(sample) for row in rows for sample in self.groups[row]]
        return [self.samples[sample] for sample in indices]


class StreamLoader(Loader):
    """Never ends, and begins where it stood: the position is state, which each data rank has of its own."""

    def __init__(self, factory: Any, sources: Sequence[Endless], shares: Sequence[float]) -> None:
        """``factory`` is a `SourcedDataFactory`; ``shares`` are how likely the next row comes from each source."""
        self.factory, self.sources = factory, sources
        self.shares = np.array(shares, np.float64) / sum(shares)
        self.dataset: Any = []
        """The samples of the buffer that is being handed out."""
        self._buffer: Buffer | None = None
        self._ahead: Future[Buffer] | None = None
        self._given = 0
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._number = 0

    def __len__(self) -> int:
        return 0

    def seek(self, epoch: int, batch: int) -> None:
        """The position is not a function of epoch and batch; it is set by `load_state_dict`."""

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self._buffer is None:
                self._buffer = self._take()
            self.dataset = self._buffer.samples
            if self._ahead is None:
                self._ahead = self._reader.submit(self._read)
            while self._given < len(self._buffer.order):
                samples = self._buffer.batch(self._given)
                self._given += 1
                yield self.factory.collate(samples)
            self._buffer, self._given = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the sources stood before the buffer under way, and how many micro-batches of it were handed out."""
        if self._buffer is None:
            self._buffer = self._take()
        position = json.dumps(self._buffer.position)
        return {"number": self._buffer.number, "given": self._given, "sources": position}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._wait()
        self._number, self._given, self._buffer = int(state["number"]), int(state["given"]), None
        for source, position in zip(self.sources, json.loads(state["sources"]), strict=True):
            source.load_state_dict(position)

    def close(self) -> None:
        self._wait()
        self._reader.shutdown()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stream")

    def _wait(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not ahead.cancel() and ahead.exception() is None:
            buffer = ahead.result()
            self._number = buffer.number  # as if it had not been read
            for source, position in zip(self.sources, buffer.position, strict=True):
                source.load_state_dict(position)

    def _take(self) -> Buffer:
        ahead, self._ahead = self._ahead, None
        return self._read() if ahead is None else ahead.result()

    def _read(self) -> Buffer:
        """The next buffer. Every rank reads the rows of all, and makes tokens of its own."""
        view, config = self.factory.trainer, self.factory.config
        position = [source.state_dict() for source in self.sources]
        number, self._number = self._number, self._number + 1
        draw = np.random.Generator(np.random.PCG64([config.seed, number]))
        turns = draw.choice(len(self.sources), size=config.stream_buffer * view.data_world, p=self.shares)
        rows = [next(self.sources[turn]) for turn in turns.tolist()]
        made = self.factory.process(json_rows.to_dataset(rows[view.data_rank :: view.data_world]))
        samples, note = preparation.with_targets(Samples(made), np.arange(len(made)), "the stream", 1.0)
        if note:
            logger.info(note)
        finished = self.factory.finish(samples)
        groups = self.factory.group(finished)
        order = GlobalOrder(len(finished if groups is None else groups), self.factory.rows, seed=config.seed)
        return Buffer(number, position, finished, groups, order)


def stream_loader(factory: Any) -> StreamLoader:
    """The loader of the training sources, of which some are streams. Raises `DataError`."""
    import datasets

    if not factory.trainer.config.train_iters:
        raise DataError("data.sources: a stream has no end, so that train_iters must say how long to train")
    if factory.config.train_eval_split[1]:
        raise DataError("data.train_eval_split: a stream cannot be split; give eval_sources")
    sources = []
    for source in factory.sources(factory.config.sources):
        if source.config.sample_ratio is not None:
            raise DataError(f"{source}: a stream has no length to take sample_ratio of; give sample_count or weight")
        rows = source("train")
        if isinstance(rows, datasets.Dataset):
            rows = rows.to_iterable_dataset()
        if source.config.sample_count is not None:
            rows = rows.take(source.config.sample_count)
        sources.append(Endless(rows, str(source)))
    return StreamLoader(factory, sources, [source.weight or 1.0 for source in factory.config.sources])
