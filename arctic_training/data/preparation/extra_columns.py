"""Columns of a source's rows that are carried through the samples into the batch."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from arctic_training.data.formats.remarks import UNREAD_COLUMNS, remark
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.preparation.samples import Samples
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


def require_columns(rows: "Dataset", names: Sequence[str]) -> None:
    """Raises `DataError` unless ``rows``, a `datasets.Dataset`, have the columns."""
    for name in names:
        if name not in rows.column_names:
            raise DataError(f"data.extra_columns: no row has {name}; there are {', '.join(rows.column_names)}")


def read_columns(rows: "Dataset", names: Sequence[str]) -> "pa.Table":
    """Returns a `pyarrow.Table` of columns of ``rows``, a `datasets.Dataset` that has them: numbers, booleans, texts,
    or lists of a fixed size of numbers or booleans. Integers among floats become floats.

    Raises `RowError` for a row without a value, with one of another type, or with a list of another length than that of
    the first row.
    """
    import pyarrow as pa

    columns = rows.select_columns(list(names)).with_format("arrow")[:]
    return pa.table({name: _read_column(name, columns.column(name)) for name in names})


def add_columns(samples: "Dataset", columns: "pa.Table") -> "pa.Table":
    """Returns a `pyarrow.Table` of ``samples``, a `datasets.Dataset`, with ``columns`` of the rows they are made of.

    All rows make equally many samples, in their order. Raises `DataError` when they do not, or when samples have such a
    column already.
    """
    import pyarrow as pa

    table = Samples(samples).table
    each, rest = divmod(table.num_rows, columns.num_rows)
    if rest:
        raise DataError(
            f"data.extra_columns: {columns.num_rows} rows became {len(table)} samples; every row must become as many"
        )
    order = pa.array(np.repeat(np.arange(columns.num_rows), each))
    for name in columns.column_names:
        if name in table.column_names:
            raise DataError(f"data.extra_columns: {name} is the name of what samples hold already; rename the column")
        table = table.append_column(name, columns.column(name).take(order))
        remark(UNREAD_COLUMNS, name, holds=False)
    return table


def collate_columns(samples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, torch.Tensor | list[str]]:
    """Returns columns of samples: numbers as a tensor ``[samples]``, int64, float32 or bool, lists of K numbers as
    ``[samples, K]``, and texts as a list. Raises `DataError` for lists of several lengths, which a stream may have."""
    columns: dict[str, torch.Tensor | list[str]] = {}
    for name in names:
        values = [sample[name] for sample in samples]
        if isinstance(values[0], str):
            columns[name] = values
            continue
        lists = [value for value in values if isinstance(value, list)]
        if len({len(value) for value in lists}) > 1 or 0 < len(lists) < len(values):
            raise DataError(f"data.extra_columns: {name} has lists of several lengths in one batch")
        kinds = {type(entry) for value in values for entry in (value if lists else [value])}
        dtype = torch.float32 if float in kinds else torch.int64 if int in kinds else torch.bool
        columns[name] = torch.tensor(values, dtype=dtype)
    return columns


def _read_column(name: str, column: "pa.ChunkedArray") -> "pa.ChunkedArray | pa.Array":
    """Returns a column as `read_columns` does. Raises `RowError`."""
    import pyarrow as pa

    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise RowError(row, f"{name} has no value; data.extra_columns carries it into batches, so all rows need one")
    kind, is_json = column.type, isinstance(column.type, pa.JsonType)
    scalar = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if scalar or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    values = [json.loads(value) for value in column.to_pylist()] if is_json else column.to_pylist()
    kinds, length = set[type](), len(values[0]) if isinstance(values[0], list) else None
    for row, value in enumerate(values):
        entries = value if isinstance(value, list) else [value]
        own = {_kind(entry) for entry in entries}
        if len(own) != 1 or object in own or (str in own and isinstance(value, list)):
            expected = "a number, true or false, a text, or a list of numbers or of true and false"
            raise RowError(row, f"{name} is {reprlib.repr(value)}; data.extra_columns carries {expected}")
        kinds |= own
        if len(kinds) > 1 or (len(value) if isinstance(value, list) else None) != length:
            first = reprlib.repr(values[0])
            raise RowError(
                row, f"{name} is {reprlib.repr(value)}, and {first} in the first row; expected one type and length"
            )
    floats = any(isinstance(entry, float) for value in values for entry in (value if length else [value]))
    number = pa.float64() if floats else pa.int64()
    arrow = {str: pa.string(), bool: pa.bool_()}.get(next(iter(kinds)), number)
    return pa.array(values, arrow if length is None else pa.list_(arrow, length))


def _kind(value: object) -> type:
    """Returns float for a number, bool or str, and object for what no column holds."""
    if isinstance(value, bool | str | float):
        return type(value)
    return float if isinstance(value, int) and -(2**63) <= value < 2**63 else object
