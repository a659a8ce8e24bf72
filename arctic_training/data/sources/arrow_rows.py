"""Reads rows of an Arrow table as Python values, exactly as the source has them."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

Row = dict[str, Any]
_Read = Callable[[Any], object]


class RowReader:
    """Reads the rows of a `datasets.Dataset` a batch at a time.

    Arrow gives all mappings of a column the same keys, and fills in None where a row lacks a key: those keys are
    removed again. JSON is read with exact numbers, which `datasets` would round.
    """

    def __init__(self, features: "Features") -> None:
        self._columns = {name: _reader(feature) for name, feature in features.items()}

    def __call__(self, table: "pa.Table") -> list[Row]:
        """Returns the rows of a `pyarrow.Table` with those features."""
        names = list(self._columns)
        values = [(_values(table.column(name)), read) for name, read in self._columns.items()]
        columns = [column if read is None else map(read, column) for column, read in values]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: "pa.ChunkedArray") -> list[Any]:
    """Returns the values of a column, JSON as text: its own type would make an object of each text first."""
    import pyarrow as pa

    is_json = isinstance(column.type, pa.JsonType)
    values: list[Any] = (column.cast(column.type.storage_type) if is_json else column).to_pylist()
    return values


def stream_reader(features: "Features | None") -> Callable[[Row], Row]:
    """Returns a function that removes the keys that Arrow fills in from rows of a `datasets.IterableDataset`.

    ``features`` are None for rows that were never in Arrow.
    """
    columns = {name: _reader(feature, decoded=True) for name, feature in (features or {}).items()}
    reads = {name: read for name, read in columns.items() if read is not None}
    return lambda row: {**row, **{name: read(row[name]) for name, read in reads.items() if name in row}}


def _reader(feature: object, *, decoded: bool = False) -> _Read | None:
    """Returns the function that converts a value of Arrow, with JSON ``decoded`` already; None where none is needed."""
    from datasets import Json, LargeList, List

    if isinstance(feature, Json):
        return None if decoded else _from_json
    if isinstance(feature, (List, LargeList)):
        feature = [feature.feature]
    if isinstance(feature, list):
        inner = _reader(feature[0], decoded=decoded)
        return None if inner is None else lambda value: None if value is None else [inner(one) for one in value]
    if isinstance(feature, Mapping):
        fields = {name: _reader(inner, decoded=decoded) for name, inner in feature.items()}
        return lambda value: None if value is None else _mapping(value, fields)
    return None


def _mapping(value: Mapping[str, Any], fields: Mapping[str, _Read | None]) -> Row:
    row = {}
    for name, inner in value.items():
        if inner is not None:
            read = fields[name]
            row[name] = inner if read is None else read(inner)
    return row


def _from_json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value
