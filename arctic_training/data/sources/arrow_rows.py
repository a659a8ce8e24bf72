"""Rows of an Arrow table as Python values, exactly as they were given."""

import json
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
_Read = Callable[[Any], Any]


class RowReader:
    """Reads the rows of a `datasets.Dataset` a batch at a time.

    Arrow gives all mappings of a column the same keys, and fills in None where a row has not that key: those keys are
    taken out again. What is held as JSON is read as it was written; `datasets` itself rounds its numbers.
    """

    def __init__(self, features: Mapping[str, Any]) -> None:
        self._columns = {name: _reader(feature) for name, feature in features.items()}

    def __call__(self, table: Any) -> list[Row]:
        """The rows of a `pyarrow.Table` with those features."""
        names = list(self._columns)
        columns = [self._column(table.column(name), read) for name, read in self._columns.items()]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def _column(self, column: Any, read: _Read | None) -> list[Any]:
        values: list[Any] = column.to_pylist()
        return values if read is None else [read(value) for value in values]


def stream_reader(features: Mapping[str, Any] | None) -> Callable[[Row], Row]:
    """Returns what takes the keys that Arrow fills in out of a row of a `datasets.IterableDataset` with ``features``.

    None: the rows were never in Arrow.
    """
    columns = {name: _reader(feature, decoded=True) for name, feature in (features or {}).items()}
    reads = {name: read for name, read in columns.items() if read is not None}
    return lambda row: {**row, **{name: read(row[name]) for name, read in reads.items() if name in row}}


def _reader(feature: Any, *, decoded: bool = False) -> _Read | None:
    """What makes a value of what Arrow says it is, JSON ``decoded`` already; None when that is the value."""
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
    made = {}
    for name, inner in value.items():
        if inner is not None:
            read = fields[name]
            made[name] = inner if read is None else read(inner)
    return made


def _from_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
