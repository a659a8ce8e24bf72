"""Turns rows into columns without loss: nested values stay JSON, so that no row gets keys that it lacks."""

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic_core import to_json

from arctic_training.data.sources.spool import Spool

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Json, Value

Row = Mapping[str, Any]

_ROWS, _CHARACTERS = 1_000, 2**24
"""Most rows, and most characters, of a table."""


class _Nested(str):
    """The JSON of a list or mapping."""


def encode_json(value: object) -> str:
    """Returns the JSON of a value that was read from JSON."""
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except ValueError:  # nested more deeply than it writes
        return json.dumps(value, ensure_ascii=False)


def to_dataset(
    rows: Iterable[Row], folder: Path | None = None, *, encode: Callable[[object], str] | None = None
) -> "Dataset":
    """Returns a `datasets.Dataset`. Columns of one scalar type have this type; all others hold JSON.

    Rows that do not fit into memory go to ``folder``. ``encode`` returns the JSON of a list or mapping; by default that
    of any value of Python, for rows that were read from JSON `encode_json`, which takes a fifth of the time.
    """
    import pyarrow as pa
    from datasets import Features

    spool = Spool(folder)
    columns: dict[str, list[Any]] = {}
    types: dict[str, set[pa.DataType]] = {}
    count = characters = 0
    encode = encode or json.JSONEncoder(ensure_ascii=False, default=_other).encode
    for row in rows:
        for name, value in row.items():
            if name not in columns:
                columns[name] = [None] * count
            if isinstance(value, (list, dict)):
                value = _Nested(encode(value))
            characters += len(value) if isinstance(value, str) else 0
            columns[name].append(value)
        count += 1
        for values in columns.values():
            if len(values) < count:
                values.append(None)
        if count == _ROWS or characters >= _CHARACTERS:
            _add(spool, columns, count, types)
            count, characters, columns = 0, 0, {}
    if count or not types:
        _add(spool, columns, count, types)
    final = {name: _common_type(kinds) for name, kinds in types.items()}
    if any(kinds != {final[name]} for name, kinds in types.items()):
        raw, spool = spool, Spool(folder)
        for table in raw.tables():
            spool.add(pa.table({name: _cast(table, name, kind) for name, kind in final.items()}))
    return spool.dataset(Features({name: _feature(kind) for name, kind in final.items()}))


def _add(spool: Spool, columns: Mapping[str, list[Any]], count: int, types: dict[str, set["pa.DataType"]]) -> None:
    """Adds a table of ``count`` rows to the spool, and the types of its columns to ``types``."""
    import pyarrow as pa

    before = {pa.null()} if types else set()
    for name in columns:
        types.setdefault(name, {*before})
    arrays = {name: _array(columns[name]) if name in columns else pa.nulls(count) for name in types}
    for name, array in arrays.items():
        types[name].add(array.type)
    spool.add(pa.table(arrays))


def _array(values: list[Any]) -> "pa.Array":
    """Returns the Arrow array of a column: of nulls, of one scalar type, or of JSON."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    types = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    if not kinds:
        return pa.nulls(len(values))
    if len(kinds) == 1 and (arrow := types.get(next(iter(kinds)))) is not None:
        try:
            return pa.array(values, arrow)
        except (OverflowError, pa.ArrowInvalid):
            pass  # an integer of more than 64 bits
    return _json(values)


def _json(values: Iterable[object]) -> "pa.Array":
    import pyarrow as pa

    texts = [
        value if value is None or isinstance(value, _Nested) else json.dumps(value, default=_other) for value in values
    ]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _other(value: object) -> object:
    """Returns the numbers of an array or a tensor, and of a time, bytes or an image a mapping, which is never read as
    text."""
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)) and type(plain := value.tolist()) is not type(value):
        return plain
    return {type(value).__name__: reprlib.repr(value)}


def _common_type(types: set["pa.DataType"]) -> "pa.DataType":
    """Returns the type that a column gets in all tables."""
    import pyarrow as pa

    types = types - {pa.null()}
    return pa.json_() if len(types) > 1 else next(iter(types), pa.string())


def _cast(table: "pa.Table", name: str, kind: "pa.DataType") -> "pa.Array | pa.ChunkedArray":
    """Returns a column of a table, cast to a type."""
    import pyarrow as pa

    if name not in table.column_names:
        return pa.nulls(len(table), kind)
    column = table.column(name)
    if column.type == kind:
        return column
    return _json(column.to_pylist()) if kind == pa.json_() else column.cast(kind)


def _feature(kind: "pa.DataType") -> "Json | Value":
    import pyarrow as pa
    from datasets import Json, Value

    names = {pa.string(): "string", pa.bool_(): "bool", pa.int64(): "int64", pa.float64(): "float64"}
    return Json() if kind == pa.json_() else Value(names[kind])
