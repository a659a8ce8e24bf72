"""Errors about rows, which name the row."""

import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from arctic_training.errors.types import DataError

T = TypeVar("T")


class RowError(DataError):
    """A row that cannot be used; ``row`` counts from 0 in what was being read. The caller knows its file and line."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(row, what)  # so that it can be pickled by another process
        self.row, self.what = row, what

    def __str__(self) -> str:
        return f"row {self.row + 1}: {self.what}"


class NothingLeft(DataError):
    """No sample is left of the rows that were read."""


def read_rows(read: Callable[[Any], T], rows: Iterable[Any], first: int) -> list[T]:
    """Returns the results of ``read``. Raises `RowError`, counting from ``first``, for a row that it refuses."""
    results = []
    for n, row in enumerate(rows, first):
        try:
            results.append(read(row))
        except DataError as error:
            raise RowError(n, str(error)) from error
    return results


def describe_error(error: BaseException) -> str:
    """Returns an error's message, with the innermost line of its traceback that is in no library."""
    if isinstance(error, DataError):
        return str(error)
    lines = traceback.extract_tb(error.__traceback__)
    place = ([line for line in lines if "site-packages" not in line.filename] or lines)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno} {place.name})"
