"""Rows that cannot be used, and which they are."""

import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from arctic_training.errors.types import DataError

T = TypeVar("T")


class RowError(DataError):
    """``row`` counts from 0 in what was being read; whoever knows the file counts on from there."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(row, what)  # so that it survives the way out of another process
        self.row, self.what = row, what

    def __str__(self) -> str:
        return f"row {self.row + 1}: {self.what}"


class NothingLeft(DataError):
    """Of all rows that were read no sample is left."""


def read_rows(read: Callable[[Any], T], rows: Iterable[Any], first: int) -> list[T]:
    """What ``read`` makes of each row. Raises `RowError`, counting from ``first``, for one that it refuses."""
    made = []
    for n, row in enumerate(rows, first):
        try:
            made.append(read(row))
        except DataError as error:
            raise RowError(n, str(error)) from error
    return made


def where(error: BaseException) -> str:
    """What went wrong, and the innermost line of it that is no library's."""
    if isinstance(error, DataError):
        return str(error)
    lines = traceback.extract_tb(error.__traceback__)
    place = ([line for line in lines if "site-packages" not in line.filename] or lines)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno} {place.name})"
