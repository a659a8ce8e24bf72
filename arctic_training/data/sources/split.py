"""Splits of a source, with slices: ``train``, ``train[:1000]``, ``test[90%:]``."""

import re
from typing import TYPE_CHECKING

from pydantic import field_validator

from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_SPLIT = re.compile(r"([\w.\-]*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")
EVALUATION = ("eval", "validation", "valid", "val", "dev", "test")
"""Names of the split to evaluate on, the likeliest first."""


def parse(split: str) -> tuple[str, str | None, str | None]:
    """Returns name, start and end of a split. Raises `DataError`."""
    if not (match := _SPLIT.fullmatch(split.strip())):
        raise DataError(f"{split!r} is not a name, with a slice or without one: train, train[:1000], test[90%:]")
    return match[1], match[2], match[3]


class SplitSourceConfig(DataSourceConfig):
    """A source whose ``split`` may have a slice."""

    @field_validator("split")
    @classmethod
    def _check_split(cls, value: str) -> str:
        try:
            parse(value)
        except DataError as error:
            raise ValueError(str(error)) from None
        return value


def select_split(rows: "Dataset", split: str) -> "Dataset":
    """Returns the rows of a `datasets.Dataset` in the slice of ``split``."""
    _, start, end = parse(split)
    if start is None and end is None:
        return rows
    size = len(rows)
    first, last = (_row(bound, size, default) for bound, default in ((start, 0), (end, size)))
    return rows.select(range(first, last) if first < last else [])


def rows_before(rows: "Dataset", split: str) -> int:
    """Returns the number of rows before the slice of ``split``."""
    start = parse(split)[1]
    return _row(start, len(rows), 0)


def find_split(splits: list[str], name: str) -> str | None:
    """Returns the split that ``name`` means among ``splits``; None when there is none."""
    if name in splits:
        return name
    return next((other for other in EVALUATION if other in splits), None) if name == "eval" else None


def _row(bound: str | None, size: int, default: int) -> int:
    """Returns the row of a bound such as ``10``, ``-10`` or ``90%``."""
    if bound is None:
        return default
    number = round(int(bound[:-1]) / 100 * size) if bound.endswith("%") else int(bound)
    return min(max(number + size if number < 0 else number, 0), size)
