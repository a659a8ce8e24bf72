"""Prepared samples, read by index from the memory-mapped cache."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Indices = npt.NDArray[np.int64]
Sample = Any
"""What a data set has at an index: a mapping from columns to arrays of tokens in text, any value in other data."""


class SampleList(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class TokenSamples(SampleList, Protocol):
    """Samples of tokens, whose lengths are known without reading them."""

    def lengths(self) -> Indices:
        """Returns the tokens of each sample, int64 ``[samples]``."""


class Samples:
    """Rows of an Arrow table. Lists of numbers are read as numpy arrays that share the table's memory."""

    def __init__(self, table: "pa.Table | Dataset", indices: Indices | None = None) -> None:
        """``table`` is a `pyarrow.Table` or `datasets.Dataset`; ``indices`` are the rows to use, in order."""
        if hasattr(table, "flatten_indices"):
            table = (table.flatten_indices() if table._indices is not None else table).data.table
        self.table, self.indices = table, indices
        self._columns = {name: _column(table.column(name)) for name in table.column_names}

    def __len__(self) -> int:
        return self.table.num_rows if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = index + len(self) if index < 0 else index
        row = row if self.indices is None else int(self.indices[row])
        return {name: column[row] for name, column in self._columns.items()}

    def is_list(self, column: str) -> bool:
        """Returns whether the rows of a column are lists of numbers."""
        return isinstance(self._columns[column], ListColumn)

    def lengths(self, column: str = "input_ids") -> Indices:
        """Returns the length of each row's list in ``column``, int64 ``[rows]``."""
        sizes = self._columns[column].lengths()
        return sizes if self.indices is None else sizes[self.indices]

    def count_other_than(self, value: int, column: str) -> Indices:
        """Returns how many entries of each row's list in ``column`` are not ``value``, int64 ``[rows]``."""
        counts = self._columns[column].count_other_than(value)
        return counts if self.indices is None else counts[self.indices]

    def select(self, indices: Indices) -> "Samples":
        """Returns the rows at ``indices``, in that order, without copying them."""
        return Samples(self.table, indices if self.indices is None else self.indices[indices])


def _column(column: "pa.ChunkedArray") -> "ListColumn | ValueColumn":
    import pyarrow as pa

    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_list and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        return ListColumn(column)
    return ValueColumn(column)


class ListColumn:
    """A column of lists of numbers."""

    def __init__(self, column: "pa.ChunkedArray") -> None:
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self.values = [_numbers(chunk.values) for chunk in chunks]
        self.offsets = [_numbers(chunk.offsets) for chunk in chunks]
        self.ends = np.cumsum([len(chunk) for chunk in chunks]).tolist()
        self.chunk = np.repeat(np.arange(len(chunks), dtype=np.int32), [len(chunk) for chunk in chunks])

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        chunk = self.chunk[row]
        offsets = self.offsets[chunk]
        place = row - self.ends[chunk] + len(offsets) - 1
        values: npt.NDArray[Any] = self.values[chunk][offsets[place] : offsets[place + 1]]
        return values

    def lengths(self) -> Indices:
        """Returns the length of each row's value, int64 ``[rows]``."""
        if not self.offsets:
            return np.empty(0, np.int64)
        return np.concatenate([np.diff(offsets) for offsets in self.offsets]).astype(np.int64)

    def count_other_than(self, value: int) -> Indices:
        """Returns how many entries of each row's value are not ``value``, int64 ``[rows]``."""
        counts = []
        for values, offsets in zip(self.values, self.offsets, strict=True):
            before = np.concatenate([[0], np.cumsum(values != value)])
            counts.append(before[offsets[1:]] - before[offsets[:-1]])
        return np.concatenate(counts).astype(np.int64) if counts else np.empty(0, np.int64)


def _numbers(array: "pa.Array") -> npt.NDArray[Any]:
    """Returns an array of Arrow, with shared memory where possible: `to_numpy` would import pandas, half a second."""
    try:
        shared: npt.NDArray[Any] = np.from_dlpack(array)
        return shared
    except Exception:  # nulls, and types that numpy cannot share
        copied: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
        return copied


class ValueColumn:
    """A column of other values."""

    def __init__(self, column: "pa.ChunkedArray") -> None:
        self.column = column

    def __getitem__(self, row: int) -> object:
        return self.column[row].as_py()

    def lengths(self) -> Indices:
        """Returns the length of each row's value, int64 ``[rows]``."""
        return np.array([len(value) for value in self.column.to_pylist()], np.int64)

    def count_other_than(self, value: int) -> Indices:
        """Returns how many entries of each row's value are not ``value``, int64 ``[rows]``."""
        return np.array([sum(entry != value for entry in row) for row in self.column.to_pylist()], np.int64)
