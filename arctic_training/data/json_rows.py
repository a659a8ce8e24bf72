"""JSON files to rows, losing nothing: what is nested stays JSON, so that no row is given keys it does not have."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from arctic_training.errors import DataError

Row = dict[str, Any]

_BLANK = b"\xef\xbb\xbf \t\n\r\x0b\x0c"


def read_lines(path: Path) -> Iterator[Row]:
    """The rows of a file with one JSON mapping in each line. Raises `DataError` with file and line."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                yield _mapping(_loads(_text(line, f"{path}:{number}"), f"{path}:{number}"), f"{path}:{number}")


def read_document(path: Path) -> Iterator[Row]:
    """The rows of a file that is a list of mappings, or JSON lines after all. Raises `DataError`."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start != b"[":
        yield from read_lines(path)
        return
    rows = _loads(_text(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), str(path)), str(path), lines=True)
    for number, row in enumerate(rows, 1):
        yield _mapping(row, f"{path}: entry {number}")


def places(path: Path) -> Iterator[str]:
    """Where each row of `read_document` stands in the file, which can be read as such."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        file.seek(0)
        if start == b"[":
            yield from (f"{path}: entry {number}" for number, _ in enumerate(read_document(path), 1))
        else:
            yield from (f"{path}:{number}" for number, line in enumerate(file, 1) if line.strip(_BLANK))


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


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        looks = "; it looks like UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(f"{where}: not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x}{looks})") from None


def _loads(text: str, where: str, *, lines: bool = False) -> Any:
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if lines else f"column {error.colno}"
        said = "a NUL character" if text[error.pos : error.pos + 1] == "\0" else error.msg
        said = said.removesuffix(" delimiter").removesuffix(" at")
        raise DataError(f"{where}: not JSON ({said} at {place})") from None
    except UnicodeEncodeError:
        raise DataError(f"{where}: holds half of a surrogate pair, which is no text") from None
    except ValueError:
        raise DataError(f"{where}: a number of more than 4,300 digits") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
    return value


def _mapping(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row is a mapping of columns, not {type(value).__name__}")
    return value
