"""Applies the transforms of a source to its rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.data.formats.row_error import RowError, describe_error
from arctic_training.data.sources.arrow_rows import Row, RowReader, stream_reader
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.data.transforms.base import RowTransform
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BATCH_SIZE = 1_000
Transforms = Sequence[RowTransform[ComponentConfig]]


def transform_rows(
    rows: "Dataset | IterableDataset", transforms: Transforms, folder: Path | None
) -> "Dataset | IterableDataset":
    """Returns ``rows``, of a `datasets.Dataset` or `IterableDataset`, after all ``transforms``; a stream remains one.

    Rows that do not fit into memory go to ``folder``. Raises `RowError` for a row that a transform refuses, and
    `DataError` for rows that are no data set, such as tensors.
    """
    import datasets

    if isinstance(rows, datasets.IterableDataset):
        read = stream_reader(rows.features)
        columns = rows.column_names or [name for row in rows.take(1) for name in row]
        return rows.map(
            lambda row, n: _transformed(read(row), n, transforms), with_indices=True, remove_columns=columns
        )
    if not isinstance(rows, datasets.Dataset):
        raise DataError(f"transforms: they change rows of text, and these are {type(rows).__name__}; remove them")
    return to_dataset((_transformed(row, n, transforms) for n, row in enumerate(_read(rows))), folder)


def _read(rows: "Dataset") -> Iterator[Row]:
    read, tables = RowReader(rows.features), rows.with_format("arrow")
    for first in range(0, len(rows), _BATCH_SIZE):
        yield from read(tables[first : first + _BATCH_SIZE])


def _transformed(row: Row, number: int, transforms: Transforms) -> Row:
    """Returns a row after all transforms. Raises `RowError`."""
    for transform in transforms:
        try:
            changed = transform(row)
        except Exception as error:  # also of the user's own code
            raise RowError(number, f"the transform {transform.name}: {describe_error(error)}") from error
        if not isinstance(changed, dict):
            what = f"returned {short_repr(changed)}; expected a row, a mapping of columns"
            raise RowError(number, f"the transform {transform.name} {what}")
        row = changed
    return row
