"""Encodes rows into tables of tokens. These callables are what `map_rows` applies, so they can be pickled."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from arctic_training.data.formats.row_error import read_rows
from arctic_training.data.sources.arrow_rows import Row
from arctic_training.errors.types import DataError
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
Columns = Mapping[str, Sequence[npt.NDArray[Any]] | Sequence[bool]]
"""The int32 array, or the flag, of each row, by column."""


class RowEncoder(Generic[T]):
    """Reads each row with ``read``, and encodes a batch of what that returns with ``encode``."""

    def __init__(self, read: Callable[[Row], T], encode: Callable[[list[T], int], Columns]) -> None:
        """``encode`` also gets the index of the first row. It returns int32 arrays, one of each row in a column."""
        self.read, self.encode = read, encode

    def __call__(self, rows: Iterable[Row], first: int) -> "pa.Table":
        """Returns a `pyarrow.Table` of tokens. Raises `RowError`, counting from ``first``."""
        return token_table(self.encode(read_rows(self.read, rows, first), first))


def token_table(columns: Columns) -> "pa.Table":
    """Returns a `pyarrow.Table` of columns of int32 arrays, or of flags."""
    import pyarrow as pa

    arrays: dict[str, pa.Array] = {}
    for name, rows in columns.items():
        if len(rows) and isinstance(rows[0], bool):
            arrays[name] = pa.array(rows)
            continue
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([np.size(row) for row in rows], out=ends[1:])
        values = np.concatenate(rows) if len(rows) else np.empty(0)
        arrays[name] = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values.astype(np.int32, copy=False)))
    return pa.table(arrays)


def pretokenized_encoder(vocab_size: int) -> RowEncoder[dict[str, npt.NDArray[np.int32]]]:
    """Returns the encoder of rows that hold tokens already, each below ``vocab_size``."""
    return RowEncoder(partial(_read_tokens, vocab_size=vocab_size), _to_columns)


def _to_columns(rows: list[dict[str, npt.NDArray[np.int32]]], first: int) -> Columns:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _read_tokens(row: Row, *, vocab_size: int) -> dict[str, npt.NDArray[np.int32]]:
    """Raises `DataError` for columns that are no lists of tokens, or of another length than their ``input_ids``."""
    expected = "process is false, so every column must be a list of tokens"
    try:
        read = {name: np.array(value, np.int32) for name, value in row.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{expected}: {error}") from None
    for name, value in read.items():
        if value.ndim != 1:
            raise DataError(f"{expected}; {name} is none")
        if name.endswith(("labels", "input_ids", "answer_ids")):
            tokens = value[value != IGNORE_INDEX] if name.endswith("labels") else value
            unknown = tokens[(tokens < 0) | (tokens >= vocab_size)]
            if len(unknown):
                raise DataError(f"{name}: {unknown[0]} is no token of the tokenizer, which has {vocab_size}")
        ids = read.get(name.replace("labels", "input_ids"), value)
        if len(ids) != len(value):
            raise DataError(f"{len(ids)} tokens have {len(value)} {name}; each has one")
    return read
