"""Rows of JSON files: lines, a list, mappings one after the other."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arctic_training.data.sources.compression import opened
from arctic_training.data.sources.json_documents import Documents, refuse_surrogates, utf16, without_ending
from arctic_training.errors.types import DataError

Row = dict[str, Any]
Placed = tuple[str, Row]
"""Where a row stands in its file, and the row."""

_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[Placed]:
    """The rows of a file with one JSON mapping in each line. Raises `DataError` with file and line."""
    with opened(path) as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if line.strip():
                where = f"{path}:{number}"
                value = _loads(_text(line, where).rstrip(), where, first=number == 1)
                hint = "; type: json reads a file that is one list" if number == 1 and isinstance(value, list) else ""
                yield where, _mapping(value, where, hint)


def read_document(path: Path, field: str = "") -> Iterator[Placed]:
    """The rows of a file that is a list of mappings, or mappings one after the other, in lines of their own or not.

    ``field`` is where in a file that is one mapping the list stands, keys with dots between them. Raises `DataError`.
    """
    if field:
        yield from _below(path, field)
        return
    with opened(path) as file:
        start = file.readline(2**20).removeprefix(_BOM)
        while start and not start.strip():
            start = file.readline(2**20)
    if start.lstrip()[:1] == b"[":
        yield from _list(path)
    elif _is_mapping(start):
        yield from _several(read_lines(path), path)
    else:
        yield from _several(_mappings(path), path)


def _list(path: Path) -> Iterator[Placed]:
    with opened(path) as file:
        documents = Documents(file, path)
        documents.peek()
        documents.skip()
        number = 0
        while documents.peek() != "]":
            if number:
                if documents.peek() != ",":
                    raise documents.wrong("Expecting ','")
                documents.skip()
            number += 1
            where = f"{path}: entry {number}"
            yield where, _mapping(documents.value(), where)
        documents.skip()
        if documents.peek():
            raise documents.wrong("Extra data")


def _mappings(path: Path) -> Iterator[Placed]:
    with opened(path) as file:
        documents = Documents(file, path)
        while documents.peek():
            where = f"{path}:{documents.line()}"
            yield where, _mapping(documents.value(), where)


def _several(rows: Iterator[Placed], path: Path) -> Iterator[Placed]:
    """Raises `DataError` where there is one only, in which the rows seem to stand."""
    first = next(rows, None)
    if first is None:
        return
    second = next(rows, None)
    if second is None and not _has_messages(first[1]) and (found := dict(_lists(first[1]))):
        told = ", ".join(f"{name} ({len(rows)} rows)" for name, rows in found.items())
        raise DataError(
            f"{path}: one mapping with the keys {', '.join(first[1])}, and lists of rows under {told}; name one: "
            f"field: {next(iter(found))}"
        )
    yield first
    if second is not None:
        yield second
        yield from rows


def _has_messages(row: Mapping[str, Any]) -> bool:
    """Returns whether a mapping is a row itself: one whose lists of mappings are chats."""
    lists = [value for value in row.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return any({"role", "from"} & set(value[0]) for value in lists)


def _lists(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _lists(inner, f"{prefix}{key}.")
        elif isinstance(inner, list) and inner and all(isinstance(one, dict) for one in inner):
            yield prefix + key, inner


def _below(path: Path, field: str) -> Iterator[Placed]:
    with opened(path) as file:
        documents = Documents(file, path)
        value = documents.value()
        if documents.peek():
            raise DataError(f"{path}: not one mapping, in which field {field} would be; leave field out")
    at = value
    for key in field.split("."):
        if not isinstance(at, dict) or key not in at:
            there = ", ".join(at) if isinstance(at, dict) else type(at).__name__
            raise DataError(f"{path}: there is no {key!r}, which field names; there is {there}")
        at = at[key]
    if not isinstance(at, list):
        raise DataError(f"{path}: {field} is {type(at).__name__}; a list of rows is wanted")
    for number, row in enumerate(at, 1):
        where = f"{path}: entry {number} of {field}"
        yield where, _mapping(row, where)


def _is_mapping(line: bytes) -> bool:
    """Returns whether a line alone is a mapping, or so wrong that what is said of the line tells more."""
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
        place = f"byte {error.start + 1} is 0x{raw[error.start]:02x}{utf16(raw)}"
        raise DataError(f"{where}: not UTF-8 ({place})") from None


def _loads(text: str, where: str, *, first: bool) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        message = "a NUL character" if text[error.pos : error.pos + 1] == "\0" else without_ending(error.msg)
        hint = "; type: json reads rows of several lines" if first and error.pos >= len(text) else ""
        raise DataError(f"{where}: not JSON ({message} at column {error.colno}){hint}") from None
    except ValueError:
        raise DataError(f"{where}: a number of more than 4,300 digits") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
    refuse_surrogates(value, text, where)
    return value


def _mapping(value: Any, where: str, hint: str = "") -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row is a mapping of columns, not {type(value).__name__}{hint}")
    return value
