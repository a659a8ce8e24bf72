"""One shard of a stream: shuffle buffers of rows, encoded and packed, with an exact position."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arctic_training.data.batching.sampler import GlobalOrder
from arctic_training.data.formats import remarks
from arctic_training.data.formats.row_error import NothingLeft, RowError
from arctic_training.data.preparation import prepare
from arctic_training.data.preparation.sample_factory import SampleFactory
from arctic_training.data.preparation.samples import Indices, Sample, SampleList, Samples
from arctic_training.data.preparation.unknown_tokens import UnknownTokenReport
from arctic_training.data.sources.arrow_rows import Row
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.data.sources.repeated import RepeatedStream
from arctic_training.errors.types import DataError
from arctic_training.logging import logger

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 200
"""Characters of a row that a message shows."""
_MAX_DROPPED = 4096
"""Most consecutive rows of which no sample is left."""


@dataclass
class ShuffleBuffer:
    """Rows that were read together, in shuffled order."""

    number: int
    """How many buffers were read before it."""
    position: list[Any]
    """The position of each source before it was read."""
    samples: SampleList
    groups: Sequence[Indices] | None
    order: Indices
    note: str = ""
    """Why no sample is left, when none is."""

    def row(self, index: int) -> list[Sample]:
        """Returns the samples of one row: one, or those that are packed together."""
        row = int(self.order[index])
        return [self.samples[sample] for sample in ([row] if self.groups is None else self.groups[row])]


class StreamShard:
    """One shard of an infinite stream. Rows are addressed by index; shards are interleaved by shuffle buffer."""

    def __init__(
        self,
        factory: SampleFactory,
        sources: Sequence[RepeatedStream],
        weights: npt.NDArray[np.float64],
        shard: int,
        num_shards: int,
        reader: Executor,
    ) -> None:
        """``weights`` are the probabilities of the sources for each row, float64 ``[sources]``."""
        self.factory, self.sources, self.weights = factory, sources, weights
        self.shard, self.num_shards, self.reader = shard, num_shards, reader
        self.first = 0
        """Index of the first row of the current buffer."""
        self._number = 0
        self.buffer: ShuffleBuffer | None = None
        self._next: Future[ShuffleBuffer] | None = None
        self._dropped, self._rounds = 0, 0
        """Rows since the last one with a sample, and the rounds of all sources by then."""

    def row(self, index: int) -> list[Sample]:
        """Returns the samples of a row that is not in a buffer before. Raises `DataError` when no more come."""
        while True:
            buffer = self._current()
            self._check_progress(buffer)
            if self._next is None:
                self._next = self.reader.submit(self._read)
            if index < self.first + len(buffer.order):
                return buffer.row(index - self.first)
            self.first += len(buffer.order)
            self.buffer = None

    def _check_progress(self, buffer: ShuffleBuffer) -> None:
        """Raises `DataError` when no sample is left of many rows, or of all rows of the sources."""
        rounds = min(source.rounds for source in self.sources)
        if len(buffer.order):
            self._dropped, self._rounds = 0, rounds
            return
        self._dropped += self.factory.config.stream_buffer
        if self._dropped > _MAX_DROPPED or rounds > self._rounds + 1:
            why = buffer.note or "the stream: no row is filled, and drop_last drops what fills none"
            raise DataError(f"{why}; so it was with the last {self._dropped} rows")

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the sources before the current buffer."""
        buffer = self._current()
        position = json.dumps(buffer.position)
        return {"shard": self.shard, "first": self.first, "number": buffer.number, "sources": position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues at a position from `state_dict`."""
        self.cancel_read_ahead()
        self.first, self._number, self.buffer = int(state["first"]), int(state["number"]), None
        self._seek(json.loads(state["sources"]))

    def cancel_read_ahead(self) -> None:
        """Stops reading ahead, and sets the sources to where the current buffer ends."""
        future, self._next = self._next, None
        if future is not None and not future.cancel() and future.exception() is None:
            buffer = future.result()
            self._number = buffer.number  # as if it had not been read
            self._seek(buffer.position)

    def _seek(self, position: list[Any]) -> None:
        for source, state in zip(self.sources, position, strict=True):
            source.load_state_dict(state)

    def _current(self) -> ShuffleBuffer:
        if self.buffer is None:
            future, self._next = self._next, None
            self.buffer = self._read() if future is None else future.result()
        return self.buffer

    def _read(self) -> ShuffleBuffer:
        """Returns the next buffer. Reads the rows of all shards, and encodes those of this one."""
        config = self.factory.config
        position = [source.state_dict() for source in self.sources]
        number, self._number = self._number, self._number + 1
        random = np.random.Generator(np.random.PCG64([config.seed, number]))
        choices = random.choice(len(self.sources), size=config.stream_buffer * self.num_shards, p=self.weights).tolist()
        rows = [next(self.sources[choice]) for choice in choices]
        shard_rows: dict[int, list[Row]] = {}
        for choice, row in list(zip(choices, rows, strict=True))[self.shard :: self.num_shards]:
            shard_rows.setdefault(choice, []).append(row)
        # each source by itself, for its rows may have another format; the order shuffles them all
        tables = [self._encode(self.sources[choice].source, shard_rows[choice]) for choice in sorted(shard_rows)]
        encoded = Samples(prepare.concat_tables(tables))
        try:
            samples, note = prepare.drop_samples_without_labels(
                encoded, np.arange(len(encoded)), "the stream", 1.0, self.factory.no_target
            )
            processed = self.factory.postprocess_samples(samples)
        except NothingLeft as error:
            logger.info(str(error))
            return ShuffleBuffer(number, position, [], None, np.empty(0, np.int64), str(error))
        if note:
            logger.info(note)
        groups = self.factory.group(processed)
        order = GlobalOrder(len(processed if groups is None else groups), seed=config.seed).permutation(number)
        return ShuffleBuffer(number, position, processed, groups, order)

    def _encode(self, source: DataSource, rows: list[Row]) -> "pa.Table":
        """Returns the samples of rows of a source in a `pyarrow.Table`. Raises `DataError`."""
        try:
            dataset, encode = to_dataset(rows), partial(prepare.encode_rows, self.factory, source)
            with remarks.collect() as collected:
                samples = Samples(encode(dataset))
            new = {about: holds for about, holds in collected.items() if about not in source.remarks}
            for line in remarks.lines(new, str(source)):
                logger.warning(line)
            source.remarks |= collected
            UnknownTokenReport(self.factory).refuse_row(dataset, samples, encode)
            return samples.table
        except RowError as error:  # nobody has counted which row of its source it is
            row = json.dumps(rows[error.row], default=str, ensure_ascii=False)
            raise DataError(f"{source}: {error.what}; the row begins {row[:_SHOWN]}") from error
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
