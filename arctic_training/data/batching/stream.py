"""The loader of streams: shards that are interleaved, with a position that is exact on any number of ranks."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np

from arctic_training.data.batching.loader import Batch, Loader
from arctic_training.data.batching.stream_shard import StreamShard
from arctic_training.data.preparation.sample_factory import SampleFactory
from arctic_training.data.preparation.samples import SampleList
from arctic_training.data.sources.repeated import RepeatedStream
from arctic_training.errors.types import DataError, ResumeError


class StreamLoader(Loader):
    """Reads an endless stream, split into as many shards as there were data ranks at its start.

    Its epochs have ``epoch_length`` steps; without it, the first epoch is endless.

    Row ``n`` of the run is row ``n // shards`` of shard ``n % shards``. The ranks take rows in turn, so each has a
    shard of its own as long as there are as many ranks as shards. On another number of ranks the shards stay, and so
    does the order.
    """

    def __init__(
        self, factory: SampleFactory, sources: Callable[[], Sequence[RepeatedStream]], weights: Sequence[float]
    ) -> None:
        """``sources`` returns the sources of ``factory`` anew, at their beginning."""
        self.factory, self.sources = factory, sources
        self.weights = np.array(weights, np.float64) / sum(weights)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._row, self._row_of_epoch = 0, 0
        self._assign_shards(factory.trainer.data_world)

    def __len__(self) -> int:
        config = self.factory.trainer.config
        return int(config.epoch_length * config.gradient_accumulation_steps)

    @property
    def stride(self) -> int:
        return int(self.factory.rows * self.factory.trainer.data_world)

    @property
    def dataset(self) -> SampleList:
        """The samples of the current buffer."""
        buffer = next(iter(self._shards.values())).buffer
        return [] if buffer is None else buffer.samples

    def seek(self, epoch: int, row: int) -> None:
        """Sets how much of the epoch is left: the position of the stream is that of `load_state_dict`."""
        self._row_of_epoch = row

    def rank_indices(self, row: int) -> range:
        return range(row + self.factory.trainer.data_rank, row + self.stride, self.factory.trainer.data_world)

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._row_of_epoch // self.stride, len(self)) if len(self) else count():
            indices = self.rank_indices(self._row)
            rows = [self._shards[index % self._num_shards].row(index // self._num_shards) for index in indices]
            self._row += self.stride
            yield self.factory.batch([sample for row in rows for sample in row])

    def state_dict(self) -> dict[str, Any]:
        shards = [shard.state_dict() for shard in self._shards.values()]
        return {"row": self._row, "num_shards": self._num_shards, "unit": self._unit, "shards": shards}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.load_sharded_state_dict([state])

    def load_sharded_state_dict(self, states: Sequence[Mapping[str, Any]], /) -> None:
        """Continues at the position that all ranks saved. Raises `ResumeError` when rows are formed differently now."""
        if (unit := str(states[0]["unit"])) != self._unit:
            raise ResumeError(f"the checkpoint's place in the stream is in {unit}, and this run has {self._unit}")
        saved: dict[int, Mapping[str, Any]] = {}
        for shard in sorted(
            (shard for state in states for shard in state["shards"]), key=lambda one: int(one["first"])
        ):
            saved[int(shard["shard"])] = shard  # several ranks may have read from one shard: the furthest position
        self._cancel_read_ahead()
        self._row = int(states[0]["row"])
        self._assign_shards(int(states[0]["num_shards"]))
        for number, shard in self._shards.items():
            shard.load_state_dict(saved[number])

    def close(self) -> None:
        self._cancel_read_ahead()
        self._reader.shutdown()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stream")
        for shard in self._shards.values():
            shard.reader = self._reader

    def _assign_shards(self, num_shards: int) -> None:
        """Creates the shards that hold rows of this rank from the current row on."""
        view = self.factory.trainer
        step = math.gcd(num_shards, view.data_world)
        self._num_shards = num_shards
        self._shards = {
            number: StreamShard(self.factory, self.sources(), self.weights, number, num_shards, self._reader)
            for number in range((self._row + view.data_rank) % step, num_shards, step)
        }

    @property
    def _unit(self) -> str:
        """Identifies what a row is, and how many are shuffled together; a position is valid for one unit."""
        config = self.factory.config
        tokens = getattr(self.factory, "capacity", None) if self.factory.packs(config) else None
        rows = "samples" if tokens is None else f"packs of {tokens} tokens"
        return f"{rows} of buffers of {config.stream_buffer} rows"

    def _cancel_read_ahead(self) -> None:
        for shard in self._shards.values():
            shard.cancel_read_ahead()


def stream_loader(factory: SampleFactory) -> StreamLoader:
    """Returns the loader of a factory's training sources, some of which are streams. Raises `DataError`."""
    import datasets

    if not (factory.trainer.config.train_iters or factory.trainer.config.epoch_length):
        raise DataError(
            "data.sources: a stream has no end, so that train_iters must say how long to train, or epoch_length how "
            "long an epoch is"
        )
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
