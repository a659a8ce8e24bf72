"""Parts of a source: ``train``, ``train[:1000]``, ``test[90%:]``."""

import re
from typing import Any

from arctic_training.errors.types import DataError

_SPLIT = re.compile(r"([\w.\-]*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")
EVALUATION = ("eval", "validation", "valid", "val", "dev", "test")
"""What the part to evaluate on may be called, the likeliest first."""


def parse(split: str) -> tuple[str, str | None, str | None]:
    """Name, start and end of a split as it is written. Raises `DataError`."""
    if not (found := _SPLIT.fullmatch(split.strip())):
        raise DataError(f"{split!r} is not a name, with a slice or without one: train, train[:1000], test[90%:]")
    return found[1], found[2], found[3]


def written(split: str) -> str:
    """``split``, for a section to check. Raises ValueError."""
    try:
        parse(split)
    except DataError as error:
        raise ValueError(str(error)) from None
    return split


def cut(rows: Any, split: str) -> Any:
    """The rows of a `datasets.Dataset` that the slice of ``split`` says."""
    _, start, end = parse(split)
    if start is None and end is None:
        return rows
    size = len(rows)
    first, last = (_row(bound, size, otherwise) for bound, otherwise in ((start, 0), (end, size)))
    return rows.select(range(first, last) if first < last else [])


def skipped(rows: Any, split: str) -> int:
    """How many of the rows `cut` leaves out before those that it takes."""
    start = parse(split)[1]
    return _row(start, len(rows), 0)


def choose(there: list[str], wanted: str) -> str | None:
    """Which of the splits ``there`` is meant by the name ``wanted``; None when none is."""
    if wanted in there:
        return wanted
    return next((name for name in EVALUATION if name in there), None) if wanted == "eval" else None


def _row(bound: str | None, size: int, otherwise: int) -> int:
    if bound is None:
        return otherwise
    number = round(int(bound[:-1]) / 100 * size) if bound.endswith("%") else int(bound)
    return min(max(number + size if number < 0 else number, 0), size)
