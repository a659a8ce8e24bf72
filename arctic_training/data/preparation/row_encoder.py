"""Encodes rows into tables of tokens. These callables are what `map_rows` applies, so they can be pickled."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from arctic_training.data.formats.row_error import read_rows
from arctic_training.data.sources.arrow_rows import Row

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
Columns = Mapping[str, Sequence[npt.NDArray[Any]] | Sequence[bool]]
"""The int32 or float32 array, or the flag, of each row, by column."""


class RowEncoder(Generic[T]):
    """Reads each row with ``read``, and encodes a batch of what that returns with ``encode``."""

    def __init__(self, read: Callable[[Row], T], encode: Callable[[list[T], int], Columns]) -> None:
        """``encode`` also gets the index of the first row. It returns arrays, one of each row in a column."""
        self.read, self.encode = read, encode

    def __call__(self, rows: Iterable[Row], first: int) -> "pa.Table":
        """Returns a `pyarrow.Table` of tokens. Raises `RowError`, counting from ``first``."""
        return token_table(self.encode(read_rows(self.read, rows, first), first))


def token_table(columns: Columns) -> "pa.Table":
    """Returns a `pyarrow.Table` of columns of float32 arrays, of int32 arrays, or of flags."""
    import pyarrow as pa

    arrays: dict[str, pa.Array] = {}
    for name, rows in columns.items():
        if len(rows) and isinstance(rows[0], bool):
            arrays[name] = pa.array(rows)
            continue
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([np.size(row) for row in rows], out=ends[1:])
        values = np.concatenate(rows) if len(rows) else np.empty(0)
        dtype = np.float32 if values.dtype == np.float32 else np.int32
        arrays[name] = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values.astype(dtype, copy=False)))
    return pa.table(arrays)
