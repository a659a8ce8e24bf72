"""Prepares samples from the rows of sources: mixes, encodes, and drops samples without labels."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from arctic_training.data.formats import remarks
from arctic_training.data.formats.row_error import NothingLeft, RowError
from arctic_training.data.preparation.extra_columns import add_columns, read_columns, require_columns
from arctic_training.data.preparation.map_rows import map_rows
from arctic_training.data.preparation.sample_factory import SampleFactory
from arctic_training.data.preparation.samples import Indices, Sample, Samples
from arctic_training.data.preparation.token_rows import pretokenized_encoder
from arctic_training.data.preparation.unknown_tokens import UnknownTokenReport
from arctic_training.data.sources import mixing
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.spool import Spool, take
from arctic_training.display.libraries import without_progress_bars
from arctic_training.errors.types import DataError
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


SAMPLES = b"arctic_training.samples"
"""The key of a table's metadata with the number of samples of each source, which follow one another, as JSON."""


def prepare_samples(
    factory: SampleFactory, sources: Sequence[DataSource], loaded: Sequence["Dataset"], unknown: UnknownTokenReport
) -> tuple["pa.Table", list[str], remarks.Remarks]:
    """Returns the samples of all sources in one `pyarrow.Table` with `SAMPLES`, notes for the log, and counts.

    ``loaded`` has the `datasets.Dataset` of each source. Tokens that a strict
    tokenizer does not know are collected in ``unknown``. Raises `DataError`, with the place of the row.
    """
    tables: list[pa.Table] = []
    notes: list[str] = []
    for source, rows in zip(sources, loaded, strict=True):
        try:
            require_columns(rows, factory.config.extra_columns)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
    chosen = mixing.sample_mixture([len(rows) for rows in loaded], [source.config for source in sources])
    with without_progress_bars(keep_in_terminal=True), remarks.collect() as counts:
        for source, rows, indices in zip(sources, loaded, chosen, strict=True):
            taken = rows if indices is None else rows.select(indices)
            logger.info(f"{source}: {len(taken)} of {len(rows)} rows")
            place = partial(_place, source, indices)
            try:
                with remarks.collect() as collected:
                    encoded = encode_rows(factory, source, taken)
            except RowError as error:
                raise DataError(f"{place(error.row)}: {error.what}") from error
            except DataError as error:
                raise DataError(f"{source}: {error}") from error
            notes += remarks.lines(source.remarks | collected, str(source))
            remarks.repeat(remarks.counts(source.remarks | collected))
            remarks.count(remarks.ROWS, str(source), len(rows))
            remarks.count(remarks.USED, str(source), len(taken))
            samples = Samples(encoded)
            numbers = np.arange(len(taken)) if indices is None else indices
            if samples_per_row := len(samples) // len(taken):
                numbers = np.repeat(numbers, samples_per_row)
            numbers = numbers if len(numbers) == len(samples) else np.arange(len(samples))
            unknown.add(taken, samples, partial(encode_rows, factory, source), place)
            max_share = factory.config.max_share_without_targets
            samples, note = drop_samples_without_labels(samples, numbers, str(source), max_share, factory.no_target)
            if note:
                notes.append(note)
            spool = Spool(factory.cache_folder)
            tables.append(samples.table if samples.indices is None else take(samples.table, samples.indices, spool))
    table = concat_tables(tables)
    sizes = json.dumps([one.num_rows for one in tables]).encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), SAMPLES: sizes}), notes, counts


def source_numbers(table: "pa.Table") -> Indices:
    """Returns the index of the source of each sample of a table of `prepare_samples`, int64 ``[samples]``."""
    sizes = json.loads(table.schema.metadata[SAMPLES])
    return np.repeat(np.arange(len(sizes)), sizes)


def _place(source: DataSource, indices: Indices | None, row: int) -> str:
    return source.place(row if indices is None else int(indices[row]))


def encode_rows(factory: SampleFactory, source: DataSource, rows: "Dataset") -> "Dataset | pa.Table":
    """Returns the samples of ``rows``, a `datasets.Dataset` of ``source``, as one. Raises `RowError`, `DataError`."""
    names = factory.config.extra_columns
    require_columns(rows, names)
    columns = read_columns(rows, names) if names else None
    samples = factory.process(rows) if source.config.process else _read_tokens(factory, rows.remove_columns(names))
    return samples if columns is None else add_columns(samples, columns)


def _read_tokens(factory: SampleFactory, rows: "Dataset") -> "Dataset":
    if "input_ids" not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise DataError(f"process is false: expected a column input_ids; there are {columns}")
    encoder = pretokenized_encoder(factory.vocab_size)
    return map_rows(rows, encoder, processes=factory.config.num_proc, folder=factory.cache_folder)


def concat_tables(tables: Sequence["pa.Table"]) -> "pa.Table":
    """Returns the rows of several `pyarrow.Table` in one. Raises `DataError` when their columns differ."""
    import pyarrow as pa

    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowInvalid as error:
        raise DataError(f"the sources cannot be mixed, their samples differ: {str(error).splitlines()[0]}") from error


def drop_samples_without_labels(
    samples: Samples, numbers: Indices, source: str, max_share: float, reason: Callable[[Sample], str]
) -> tuple[Samples, str]:
    """Returns the samples that have a label, and a note about the others: how many, the ``reason``, and which.

    ``numbers`` are the rows of the source that the samples were encoded from. Raises `DataError` when more than
    ``max_share`` of them are dropped, `NothingLeft` when all are.
    """
    columns = samples.table.column_names
    if "input_ids" not in columns:
        return samples, ""
    counts = samples.count_other_than(IGNORE_INDEX, "labels") if "labels" in columns else samples.lengths()
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return samples, ""
    rows: dict[str, list[int]] = {}
    for row in empty:
        rows.setdefault(reason(samples[int(row)]), []).append(int(numbers[row]) + 1)
    for why, some in rows.items():
        remarks.count(remarks.DROPPED, f"they {why}", len(some))
    note = f"{source}: " + "; ".join(
        f"{len(some)} of {len(samples)} rows {why}: {', '.join(map(str, some[:10]))}{', ...' if len(some) > 10 else ''}"
        for why, some in rows.items()
    )
    if len(empty) == len(samples):
        raise NothingLeft(f"{note}; nothing is left to train on")
    if len(empty) > max_share * len(samples):
        raise DataError(f"{note}; more than data.max_share_without_targets = {max_share:g} allows")
    return samples.select(np.flatnonzero(counts)), f"{note}; they are dropped"
