"""Reads the rows of JSON files: lines, a list, or mappings one after the other."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arctic_training.data.formats.json_text import RepeatedKeyError, loads
from arctic_training.data.sources.compression import open_decompressed
from arctic_training.data.sources.json_documents import JsonReader, refuse_surrogates, utf16_hint, without_ending
from arctic_training.errors.types import DataError

Row = dict[str, Any]
PlacedRow = tuple[str, Row]
"""The place of a row in its file, such as ``rows.jsonl:7``, and the row."""

_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[PlacedRow]:
    """Yields the rows of a file with one JSON mapping in each line. Raises `DataError` with file and line."""
    with open_decompressed(path) as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if line.strip():
                where = f"{path}:{number}"
                value = _loads(_text(line, where).rstrip(), where, first=number == 1)
                hint = "; type: json reads a file that is one list" if number == 1 and isinstance(value, list) else ""
                yield where, _mapping(value, where, hint)


def read_document(path: Path, field: str = "") -> Iterator[PlacedRow]:
    """Yields the rows of a file that is a list of mappings, or mappings one after the other, in one line or several.

    ``field`` is the list in a file that is one mapping: keys joined by dots. Raises `DataError`.
    """
    if field:
        yield from _read_field(path, field)
        return
    with open_decompressed(path) as file:
        start = file.readline(2**20).removeprefix(_BOM)
        while start and not start.strip():
            start = file.readline(2**20)
    if start.lstrip()[:1] == b"[":
        yield from _read_list(path)
    elif _is_mapping(start):
        yield from _check_several(read_lines(path), path)
    else:
        yield from _check_several(_read_mappings(path), path)


def _read_list(path: Path) -> Iterator[PlacedRow]:
    """Yields the rows of a file that is one list. Raises `DataError`."""
    with open_decompressed(path) as file:
        reader = JsonReader(file, path)
        reader.peek()
        reader.skip()
        number = 0
        while reader.peek() != "]":
            if number:
                if reader.peek() != ",":
                    raise reader.wrong("Expecting ','")
                reader.skip()
            number += 1
            where = f"{path}: entry {number}"
            yield where, _mapping(reader.value(), where)
        reader.skip()
        if reader.peek():
            raise reader.wrong("Extra data")


def _read_mappings(path: Path) -> Iterator[PlacedRow]:
    """Yields mappings one after the other. Raises `DataError`."""
    with open_decompressed(path) as file:
        reader = JsonReader(file, path)
        while reader.peek():
            where = f"{path}:{reader.line()}"
            yield where, _mapping(reader.value(), where)


def _check_several(rows: Iterator[PlacedRow], path: Path) -> Iterator[PlacedRow]:
    """Yields the rows. Raises `DataError` for a single mapping that seems to contain the rows."""
    first = next(rows, None)
    if first is None:
        return
    second = next(rows, None)
    if second is None and not _has_messages(first[1]) and (lists := dict(_lists(first[1]))):
        counts = ", ".join(f"{name} ({len(rows)} rows)" for name, rows in lists.items())
        raise DataError(
            f"{path}: one mapping with the keys {', '.join(first[1])}, and lists of rows under {counts}; name one: "
            f"field: {next(iter(lists))}"
        )
    yield first
    if second is not None:
        yield second
        yield from rows


def _has_messages(row: Mapping[str, Any]) -> bool:
    """Returns whether a mapping is itself a row: one with a list of messages."""
    lists = [value for value in row.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return any({"role", "from"} & set(value[0]) for value in lists)


def _lists(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yields the lists of mappings in a mapping, with their keys joined by dots."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _lists(inner, f"{prefix}{key}.")
        elif isinstance(inner, list) and inner and all(isinstance(one, dict) for one in inner):
            yield prefix + key, inner


def _read_field(path: Path, field: str) -> Iterator[PlacedRow]:
    """Yields the rows under ``field`` of a file that is one mapping. Raises `DataError`."""
    with open_decompressed(path) as file:
        reader = JsonReader(file, path)
        value = reader.value()
        if reader.peek():
            raise DataError(f"{path}: not one mapping, in which field {field} would be; remove field")
    at = value
    for key in field.split("."):
        if not isinstance(at, dict) or key not in at:
            names = ", ".join(at) if isinstance(at, dict) else type(at).__name__
            raise DataError(f"{path}: there is no {key!r}, which field names; there is {names}")
        at = at[key]
    if not isinstance(at, list):
        raise DataError(f"{path}: {field} is {type(at).__name__}; expected a list of rows")
    for number, row in enumerate(at, 1):
        where = f"{path}: entry {number} of {field}"
        yield where, _mapping(row, where)


def _is_mapping(line: bytes) -> bool:
    """Returns whether a line alone is a mapping, or so wrong that an error about the line is clearer."""
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError as error:
        return error.pos < len(error.doc.rstrip())
    except (ValueError, RecursionError):
        return True


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1} is 0x{raw[error.start]:02x}{utf16_hint(raw)}"
        raise DataError(f"{where}: not UTF-8 ({place})") from None


def _loads(text: str, where: str, *, first: bool) -> object:
    try:
        value = loads(text)
    except json.JSONDecodeError as error:
        message = "a NUL character" if text[error.pos : error.pos + 1] == "\0" else without_ending(error.msg)
        hint = "; type: json reads rows of several lines" if first and error.pos >= len(text) else ""
        raise DataError(f"{where}: not JSON ({message} at column {error.colno}){hint}") from None
    except RepeatedKeyError as error:
        raise DataError(f"{where}: {error}") from None
    except ValueError:
        raise DataError(f"{where}: a number of more than 4,300 digits") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
    refuse_surrogates(value, text, where)
    return value


def _mapping(value: object, where: str, hint: str = "") -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row is a mapping of columns, not {type(value).__name__}{hint}")
    return value
