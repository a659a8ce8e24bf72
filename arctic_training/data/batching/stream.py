"""Micro-batches out of streams: buffers of rows become tokens, packed and shuffled; the place is exact in every cut."""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from arctic_training.data.batching.loader import Batch, Loader
from arctic_training.data.batching.sampler import GlobalOrder, Rows
from arctic_training.data.formats import remarks
from arctic_training.data.formats.row_error import NothingLeft, RowError
from arctic_training.data.preparation import prepare
from arctic_training.data.preparation.samples import Samples
from arctic_training.data.preparation.unknown_tokens import UnknownTokenReport
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.data.sources.repeated import RepeatedStream
from arctic_training.errors.types import DataError, ResumeError
from arctic_training.logging import logger

_SHOWN = 200
"""Characters of a row that a message shows."""
_IN_VAIN = 4096
"""Most rows, one after the other, that nothing is left of."""


@dataclass
class ShuffleBuffer:
    """What was read at one time, in the order in which it is handed out."""

    number: int
    """How many were read before it."""
    position: list[Any]
    """Where each source stood before it was read."""
    samples: Any
    groups: Sequence[Any] | None
    order: Rows
    note: str = ""
    """Why nothing is left of what was read."""

    def row(self, index: int) -> list[Any]:
        """The samples of one row: one, or those that are packed together."""
        row = int(self.order[index])
        return [self.samples[sample] for sample in ([row] if self.groups is None else self.groups[row])]


class StreamShard:
    """One of the equal shares that a stream is dealt into, buffer by buffer: rows without an end, by number."""

    def __init__(
        self,
        factory: Any,
        sources: Sequence[RepeatedStream],
        shares: npt.NDArray[np.float64],
        lane: int,
        lanes: int,
        reader: Executor,
    ) -> None:
        """``factory`` is a `SourcedDataFactory`; ``shares`` are how likely the next row comes from each source."""
        self.factory, self.sources, self.shares = factory, sources, shares
        self.lane, self.lanes, self.reader = lane, lanes, reader
        self.first = 0
        """Number of the first row of the buffer under way."""
        self._number = 0
        self.buffer: ShuffleBuffer | None = None
        self._ahead: Future[ShuffleBuffer] | None = None
        self._in_vain, self._rounds = 0, 0
        """Rows since the last of which something was left, and rounds that all sources had made by then."""

    def row(self, number: int) -> list[Any]:
        """The samples of a row that is not of a buffer left behind. Raises `DataError` when none comes any more."""
        while True:
            buffer = self._current()
            self._look(buffer)
            if self._ahead is None:
                self._ahead = self.reader.submit(self._read)
            if number < self.first + len(buffer.order):
                return buffer.row(number - self.first)
            self.first += len(buffer.order)
            self.buffer = None

    def _look(self, buffer: ShuffleBuffer) -> None:
        """Raises `DataError` when nothing is left of so many rows, or of all."""
        rounds = min(source.rounds for source in self.sources)
        if len(buffer.order):
            self._in_vain, self._rounds = 0, rounds
            return
        self._in_vain += self.factory.config.stream_buffer
        if self._in_vain > _IN_VAIN or rounds > self._rounds + 1:
            told = buffer.note or "the stream: no row is filled, and drop_last leaves out what fills none"
            raise DataError(f"{told}; so it was with the last {self._in_vain} rows")

    def state_dict(self) -> dict[str, Any]:
        """Where the sources stood before the buffer under way."""
        buffer = self._current()
        position = json.dumps(buffer.position)
        return {"lane": self.lane, "first": self.first, "number": buffer.number, "sources": position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.wait()
        self.first, self._number, self.buffer = int(state["first"]), int(state["number"]), None
        self._stand_at(json.loads(state["sources"]))

    def wait(self) -> None:
        """Read no further ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not ahead.cancel() and ahead.exception() is None:
            buffer = ahead.result()
            self._number = buffer.number  # as if it had not been read
            self._stand_at(buffer.position)

    def _stand_at(self, position: list[Any]) -> None:
        for source, place in zip(self.sources, position, strict=True):
            source.load_state_dict(place)

    def _current(self) -> ShuffleBuffer:
        if self.buffer is None:
            ahead, self._ahead = self._ahead, None
            self.buffer = self._read() if ahead is None else ahead.result()
        return self.buffer

    def _read(self) -> ShuffleBuffer:
        """The next buffer. The rows of all lanes are read, and tokens made of those of this one."""
        config = self.factory.config
        position = [source.state_dict() for source in self.sources]
        number, self._number = self._number, self._number + 1
        draw = np.random.Generator(np.random.PCG64([config.seed, number]))
        turns = draw.choice(len(self.sources), size=config.stream_buffer * self.lanes, p=self.shares)
        rows = [next(self.sources[turn]) for turn in turns.tolist()]
        mine: dict[int, list[Any]] = {}
        for turn, row in list(zip(turns.tolist(), rows, strict=True))[self.lane :: self.lanes]:
            mine.setdefault(turn, []).append(row)
        # each source by itself, for its rows may have another shape; the order shuffles them all
        tables = [self._process(self.sources[turn].source, mine[turn]) for turn in sorted(mine)]
        made = Samples(prepare.concat_tables(tables))
        try:
            samples, note = prepare.drop_samples_without_labels(
                made, np.arange(len(made)), "the stream", 1.0, self.factory.no_target
            )
            finished = self.factory.postprocess_samples(samples)
        except NothingLeft as error:
            logger.info(str(error))
            return ShuffleBuffer(
                number, position, [], None, GlobalOrder(0, seed=config.seed).permutation(number), str(error)
            )
        if note:
            logger.info(note)
        groups = self.factory.group(finished)
        order = GlobalOrder(len(finished if groups is None else groups), seed=config.seed).permutation(number)
        return ShuffleBuffer(number, position, finished, groups, order)

    def _process(self, source: DataSource, rows: list[Any]) -> Any:
        """The samples of rows of a source, in a `pyarrow.Table`."""
        try:
            dataset, process = to_dataset(rows), partial(prepare.encode_rows, self.factory, source)
            with remarks.collect() as found:
                samples = Samples(process(dataset))
            new = {about: holds for about, holds in found.items() if about not in source.remarks}
            for line in remarks.lines(new, str(source)):
                logger.warning(line)
            source.remarks |= found
            UnknownTokenReport(self.factory).refuse_row(dataset, samples, process)
            return samples.table
        except RowError as error:  # which row of its source it is, nobody has counted
            row = json.dumps(rows[error.row], default=str, ensure_ascii=False)
            raise DataError(f"{source}: {error.what}; the row begins {row[:_SHOWN]}") from error
        except DataError as error:
            raise DataError(f"{source}: {error}") from error


class StreamLoader(Loader):
    """Never ends, and begins where it stood. The stream is dealt into as many lanes as data ranks begin it.

    Row ``n`` of the run is row ``n // lanes`` of lane ``n % lanes``. The ranks take rows in turn, so that each has a
    lane of its own as long as there are as many ranks as lanes. On another number of them the lanes stay, and so does
    the order.
    """

    def __init__(self, factory: Any, sources: Callable[[], Sequence[RepeatedStream]], shares: Sequence[float]) -> None:
        """``sources`` makes the sources anew, at their beginning."""
        self.factory, self.sources = factory, sources
        self.shares = np.array(shares, np.float64) / sum(shares)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._row = 0
        self._assign_shards(factory.trainer.data_world)

    def __len__(self) -> int:
        return 0

    @property
    def stride(self) -> int:
        return int(self.factory.rows * self.factory.trainer.data_world)

    @property
    def dataset(self) -> Any:
        """The samples of the buffer that is being handed out."""
        buffer = next(iter(self._lanes.values())).buffer
        return [] if buffer is None else buffer.samples

    def seek(self, epoch: int, row: int) -> None:
        """The position is not a function of epoch and row alone; it is set by `load_state_dict`."""

    def places(self, row: int) -> range:
        return range(row + self.factory.trainer.data_rank, row + self.stride, self.factory.trainer.data_world)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            mine = self.places(self._row)
            rows = [self._lanes[row % self._count].row(row // self._count) for row in mine]
            self._row += self.stride
            yield self.factory.batch([sample for row in rows for sample in row])

    def state_dict(self) -> dict[str, Any]:
        held = [lane.state_dict() for lane in self._lanes.values()]
        return {"row": self._row, "lanes": self._count, "unit": self._unit, "held": held}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.load_sharded_state_dict([state])

    def load_sharded_state_dict(self, shares: Sequence[Mapping[str, Any]], /) -> None:
        """Raises `ResumeError` when rows are made in another way than they were counted in."""
        if (there := str(shares[0]["unit"])) != self._unit:
            raise ResumeError(f"the checkpoint's place in the stream is in {there}, and this run has {self._unit}")
        found: dict[int, Mapping[str, Any]] = {}
        for held in sorted((held for share in shares for held in share["held"]), key=lambda held: int(held["first"])):
            found[int(held["lane"])] = held  # several ranks may have read from one lane: the one that is furthest
        self._wait()
        self._row = int(shares[0]["row"])
        self._assign_shards(int(shares[0]["lanes"]))
        for number, lane in self._lanes.items():
            lane.load_state_dict(found[number])

    def close(self) -> None:
        self._wait()
        self._reader.shutdown()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stream")
        for lane in self._lanes.values():
            lane.reader = self._reader

    def _assign_shards(self, lanes: int) -> None:
        """Hold the lanes that rows of this rank are of from here on."""
        view = self.factory.trainer
        apart = math.gcd(lanes, view.data_world)
        self._count = lanes
        self._lanes = {
            lane: StreamShard(self.factory, self.sources(), self.shares, lane, lanes, self._reader)
            for lane in range((self._row + view.data_rank) % apart, lanes, apart)
        }

    @property
    def _unit(self) -> str:
        """What a row is, and how many are shuffled together."""
        config = self.factory.config
        tokens = getattr(self.factory, "capacity", None) if self.factory.packs(config) else None
        packed = "samples" if tokens is None else f"packs of {tokens} tokens"
        return f"{packed} of buffers of {config.stream_buffer} rows"

    def _wait(self) -> None:
        for lane in self._lanes.values():
            lane.wait()


def stream_loader(factory: Any) -> StreamLoader:
    """The loader of the training sources, of which some are streams. Raises `DataError`."""
    import datasets

    if not factory.trainer.config.train_iters:
        raise DataError("data.sources: a stream has no end, so that train_iters must say how long to train")
    if factory.config.train_eval_split[1]:
        raise DataError("data.train_eval_split: a stream cannot be split; give eval_sources")
    parts = []
    for source in factory.sources(factory.config.sources):
        if source.config.sample_ratio is not None:
            raise DataError(f"{source}: a stream has no length to take sample_ratio of; give sample_count or weight")
        rows = source("train")
        if isinstance(rows, datasets.Dataset):
            rows = rows.to_iterable_dataset()
        if source.config.sample_count is not None:
            rows = rows.take(source.config.sample_count)
        parts.append((rows, source))

    def sources() -> list[RepeatedStream]:
        return [RepeatedStream(copy.deepcopy(rows), source) for rows, source in parts]

    return StreamLoader(factory, sources, [source.weight or 1.0 for source in factory.config.sources])
