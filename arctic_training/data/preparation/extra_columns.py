"""Columns of a source's rows that are carried through the samples into the batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from arctic_training.data.formats.remarks import UNREAD_COLUMNS, remark
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.preparation.samples import Samples
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


def require_columns(rows: "Dataset", names: Sequence[str]) -> None:
    """Raises `DataError` unless ``rows``, a `datasets.Dataset`, have the columns, of numbers, booleans or texts."""
    import pyarrow as pa
    from datasets import Json

    for name in names:
        if name not in rows.column_names:
            raise DataError(f"data.extra_columns: no row has {name}; there are {', '.join(rows.column_names)}")
        kind = rows.data.table.schema.field(name).type
        scalar = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        scalar = scalar or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
        if not scalar or isinstance(rows.features[name], Json):
            raise DataError(
                f"data.extra_columns: {name} holds lists, mappings or values of several types; expected a number, true "
                "or false, or a text in each row"
            )


def add_columns(samples: "Dataset", rows: "Dataset", names: Sequence[str]) -> "pa.Table":
    """Returns a `pyarrow.Table` of ``samples`` with the columns ``names`` of the ``rows`` that they are made of.

    Both are a `datasets.Dataset`; all rows make equally many samples, in their order. Raises `DataError` when they do
    not, or when samples have such a column already, and `RowError` for a row without a value.
    """
    import pyarrow as pa

    table = Samples(samples).table
    each, rest = divmod(table.num_rows, len(rows))
    if rest:
        raise DataError(
            f"data.extra_columns: {len(rows)} rows became {table.num_rows} samples; every row must become as many"
        )
    columns = rows.select_columns(list(names)).with_format("arrow")[:]
    order = pa.array(np.repeat(np.arange(len(rows)), each))
    for name in names:
        if name in table.column_names:
            raise DataError(f"data.extra_columns: {name} is the name of what samples hold already; rename the column")
        column = columns.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise RowError(
                row, f"{name} has no value; data.extra_columns carries it into batches, so all rows need one"
            )
        table = table.append_column(name, column.take(order))
        remark(UNREAD_COLUMNS, name, holds=False)
    return table
