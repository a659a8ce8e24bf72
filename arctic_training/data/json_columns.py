"""Rows to columns, losing nothing: what is nested stays JSON, so that no row is given keys it does not have."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]


class _Nested(str):
    """The JSON of a list or mapping."""


def to_dataset(rows: Iterable[Row]) -> Any:
    """A `datasets.Dataset`. Columns of one kind of scalar have its type; all others hold JSON."""
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, Features

    columns: dict[str, list[Any]] = {}
    for count, row in enumerate(rows):
        for name, value in row.items():
            if name not in columns:
                columns[name] = [None] * count
            nested = isinstance(value, (list, dict))
            columns[name].append(_Nested(json.dumps(value, ensure_ascii=False)) if nested else value)
        for held in columns.values():
            if len(held) == count:
                held.append(None)
    arrays, features = {}, {}
    for name, values in columns.items():
        arrays[name], features[name] = _column(values)
    return Dataset(pa.table(arrays), info=DatasetInfo(features=Features(features)))


def _column(values: list[Any]) -> tuple[Any, Any]:
    """The Arrow array and the `datasets` feature of a column."""
    import pyarrow as pa
    from datasets import Json, Value

    kinds = {type(value) for value in values if value is not None}
    scalars = {str: ("string", pa.string()), bool: ("bool", pa.bool_()), int: ("int64", pa.int64())}
    for kind, (name, arrow) in {**scalars, float: ("float64", pa.float64())}.items():
        if kinds <= {kind}:
            try:
                return pa.array(values, arrow), Value(name)
            except (OverflowError, pa.ArrowInvalid):
                break  # an integer of more than 64 bits
    told = [value if value is None or isinstance(value, _Nested) else json.dumps(value) for value in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(told, pa.string())), Json()
