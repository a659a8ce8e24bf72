"""Rows of sources to samples: loading, taking a part, making tokens on several processes, and what is left out."""

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from arctic_training.data.formats import remarks
from arctic_training.data.formats.row_error import NothingLeft, RowError, where
from arctic_training.data.preparation import workers
from arctic_training.data.preparation.samples import Samples
from arctic_training.data.preparation.unknown_tokens import UnknownTokenReport
from arctic_training.data.sources import mixing
from arctic_training.data.sources.arrow_rows import Row, RowReader, stream_reader
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.data.sources.spool import IN_MEMORY, Scratch, Spool, take
from arctic_training.distributed import environment
from arctic_training.errors.types import ArcticError, DataError
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.progress_bars import without_progress_bars

Rows = list[Row]
_BATCH = 1_000
_ROWS_EACH = 5_000
"""Rows that are worth a process of their own."""
_IN_MEMORY = IN_MEMORY
"""Bytes above which what is made goes to disk at once."""


def load(source: DataSource, split: str) -> Any:
    """The rows of ``source`` as a `datasets.Dataset`. Raises `DataError`; a stream must say how many rows to take."""
    import datasets

    with without_progress_bars("datasets", keep_in_terminal=True), remarks.collect() as source.remarks:
        try:
            rows = source(split)
        except RowError as error:
            raise DataError(f"{source.place(error.row)}: {error.what}") from error
        if isinstance(rows, datasets.IterableDataset):
            if source.config.sample_count is None:
                raise DataError(f"{source}: a stream to evaluate on needs a sample_count")
            rows = to_dataset(map(stream_reader(rows.features), rows.take(source.config.sample_count)))
    if not isinstance(rows, datasets.Dataset):
        raise DataError(f"{source}: load gave {type(rows).__name__}; wanted is a datasets.Dataset")
    if not len(rows):
        raise DataError(f"{source}: there are no rows")
    return rows


def prepare(
    factory: Any, sources: Sequence[DataSource], loaded: Sequence[Any], unknown: UnknownTokenReport
) -> tuple[Any, list[str]]:
    """The samples of all sources in one `pyarrow.Table`, and what a person should be told of them.

    What a strict tokenizer does not know is left in ``unknown``.
    """

    tables: list[Any] = []
    notes: list[str] = []
    chosen = mixing.sample_mixture([len(rows) for rows in loaded], [source.config for source in sources])
    with without_progress_bars("datasets", keep_in_terminal=True):
        for source, rows, indices in zip(sources, loaded, chosen, strict=True):
            taken = rows if indices is None else rows.select(indices)
            logger.info(f"{source}: {len(taken)} of {len(rows)} rows")
            place = partial(_place, source, indices)
            try:
                with remarks.collect() as found:
                    made = process(factory, source, taken)
            except RowError as error:
                raise DataError(f"{place(error.row)}: {error.what}") from error
            except DataError as error:
                raise DataError(f"{source}: {error}") from error
            notes += remarks.lines(source.remarks | found, str(source))
            samples = Samples(made)
            numbers = indices if indices is not None and len(indices) == len(samples) else np.arange(len(samples))
            unknown.look(taken, samples, partial(process, factory, source), place)
            most, why = factory.config.max_share_without_targets, factory.no_target
            samples, note = drop_samples_without_labels(samples, numbers, str(source), most, why)
            notes += [note] * bool(note)
            spool = Spool(factory.cache_folder, _IN_MEMORY)
            tables.append(samples.table if samples.indices is None else take(samples.table, samples.indices, spool))
    return join(tables), notes


def _place(source: DataSource, indices: Any, row: int) -> str:
    return source.place(row if indices is None else int(indices[row]))


def process(factory: Any, source: DataSource, rows: Any) -> Any:
    """The samples of rows of ``source``, a `datasets.Dataset`. Raises `RowError`, `DataError`."""
    if source.config.process:
        return factory.process(rows)
    if "input_ids" not in rows.column_names:
        there = ", ".join(rows.column_names)
        raise DataError(f"process is false, so that a column input_ids is wanted; there are {there}")
    return map_rows(rows, _Tokens(factory.known_tokens), processes=factory.config.num_proc, folder=factory.cache_folder)


def join(tables: Sequence[Any]) -> Any:
    """The samples of several sources in one `pyarrow.Table`. Raises `DataError` when they have not the same columns."""
    import pyarrow as pa

    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowInvalid as error:
        raise DataError(f"the sources cannot be mixed, their samples differ: {str(error).splitlines()[0]}") from error


def drop_samples_without_labels(
    samples: Samples, numbers: Any, source: str, most: float, why: Callable[[Any], str]
) -> tuple[Samples, str]:
    """The samples that have a target, and a note about the others: how many, ``why`` and which.

    Raises `DataError` when they are too many.
    """
    columns = samples.table.column_names
    if "input_ids" not in columns:
        return samples, ""
    counts = samples.counts("labels", IGNORE_INDEX) if "labels" in columns else samples.lengths()
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return samples, ""
    rows: dict[str, list[int]] = {}
    for row in empty:
        rows.setdefault(why(samples[int(row)]), []).append(int(numbers[row]) + 1)
    note = f"{source}: " + "; ".join(
        f"{len(some)} of {len(samples)} rows {reason}: {', '.join(map(str, some[:10]))}{', ...' * (len(some) > 10)}"
        for reason, some in rows.items()
    )
    if len(empty) == len(samples):
        raise NothingLeft(f"{note}; nothing is left to train on")
    if len(empty) > most * len(samples):
        raise DataError(f"{note}; more than data.max_share_without_targets = {most:g} allows")
    return samples.select(np.flatnonzero(counts)), f"{note}; they are left out"


def map_rows(dataset: Any, encode: Callable[[Rows, int], Any], *, processes: int, folder: Path | None = None) -> Any:
    """What ``encode`` makes of the rows, as a new `datasets.Dataset`.

    ``encode`` gets up to 1,000 rows and the index of the first, and returns a `pyarrow.Table` or a mapping of columns.
    It is pickled when ``processes``, the most there may be, allows several and there are rows enough. What is too much
    for the memory goes to ``folder`` meanwhile.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, min(processes, cores, len(dataset) // _ROWS_EACH))
    hand_over = _Encode(encode, dataset.features)
    rows = dataset.with_format("arrow")
    with _threads(alone=count == 1), nullcontext() if count == 1 else workers.mapping():
        if count == 1:
            return _alone(rows, hand_over, folder)
        aside = Scratch(folder)
        hand_over.remarks = aside.path
        made = rows.map(
            hand_over,
            batched=True,
            with_indices=True,
            batch_size=_BATCH,
            remove_columns=dataset.column_names,
            num_proc=count,
            cache_file_name=str(aside.path / "rows.arrow"),
            load_from_cache_file=False,
            new_fingerprint="0" * 16,  # the cache has a key of its own; hashing the tokenizer would take its time
        ).with_format(None)
        remarks.read(aside.path)
    made._scratch = aside  # lives as long as what is mapped into memory from it
    return made


def _alone(rows: Any, hand_over: "_Encode", folder: Path | None) -> Any:
    import pyarrow as pa

    spool = Spool(folder, _IN_MEMORY)
    for first in range(0, len(rows), _BATCH):
        made = hand_over(rows[first : first + _BATCH], [first])
        spool.add(made if isinstance(made, pa.Table) else pa.table(dict(made)))
    return spool.dataset()


class _Encode:
    """Hands a batch on as rows."""

    def __init__(self, encode: Callable[[Rows, int], Any], features: Mapping[str, Any]) -> None:
        self.encode, self.features = encode, features
        self.remarks: Path | None = None
        """Where another process leaves what it remarks."""
        self._read: RowReader | None = None

    def __call__(self, table: Any, indices: list[int]) -> Any:
        if self._read is None:  # made where it is used: it cannot be pickled
            self._read = RowReader(self.features)
        rows, first = self._read(table), indices[0]
        try:
            with remarks.collect() as found:
                made = self.encode(rows, first)
            if self.remarks is None:
                remarks.repeat(found)
            else:
                remarks.write(found, self.remarks)
            return made
        except ArcticError:
            raise
        except Exception:  # of the code that makes samples: which row it was, it does not know
            for number, row in enumerate(rows, first):
                try:
                    self.encode([row], number)
                except Exception as error:
                    raise RowError(number, where(error)) from error
            raise


def token_table(columns: Mapping[str, Sequence[Any]]) -> Any:
    """A `pyarrow.Table` of columns whose rows are int32 arrays."""
    import pyarrow as pa

    arrays = {}
    for name, rows in columns.items():
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=ends[1:])
        values = np.concatenate(rows) if len(rows) else np.empty(0)
        arrays[name] = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values.astype(np.int32, copy=False)))
    return pa.table(arrays)


class _Tokens:
    """Takes rows that somebody else has made tokens of, as they are."""

    def __init__(self, known: int) -> None:
        """Every token is below ``known``."""
        self.known = known

    def __call__(self, rows: Rows, first: int) -> Any:
        """Raises `RowError`."""
        made = [self._row(row, first + n) for n, row in enumerate(rows)]
        return token_table({name: [row[name] for row in made] for name in made[0]})

    def _row(self, row: Row, number: int) -> dict[str, Any]:
        wanted = "process is false, so that every column is a list of tokens"
        try:
            read = {name: np.array(value, np.int32) for name, value in row.items()}
        except (TypeError, ValueError, OverflowError) as error:
            raise RowError(number, f"{wanted}: {error}") from None
        for name, value in read.items():
            if value.ndim != 1:
                raise RowError(number, f"{wanted}; {name} is none")
            if name.endswith(("labels", "input_ids")):
                tokens = value[value != IGNORE_INDEX] if name.endswith("labels") else value
                wrong = tokens[(tokens < 0) | (tokens >= self.known)]
                if len(wrong):
                    raise RowError(number, f"{name}: {wrong[0]} is no token of the tokenizer, which has {self.known}")
            ids = read.get(name.replace("labels", "input_ids"), value)
            if len(ids) != len(value):
                raise RowError(number, f"{len(ids)} tokens have {len(value)} {name}; each has one")
        return read


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("datasets", "tokenizers", "transformers")}


@contextmanager
def _threads(*, alone: bool) -> Iterator[None]:
    """Let the tokenizer use all cores when it works in one process; say so, or it complains of every later fork."""
    told = os.environ.get("TOKENIZERS_PARALLELISM")
    if told is None:
        environment.set_env("TOKENIZERS_PARALLELISM", "true" if alone else "false")
    try:
        yield
    finally:
        if told is None:
            environment.set_env("TOKENIZERS_PARALLELISM", "false")
