"""Formats numbers, times and tables for a person."""

from collections.abc import Container, Sequence


def clock(seconds: float | None) -> str:
    """Returns a time as ``0:01:20``; ``-:--:--`` for None."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def position(done: int, total: int | None) -> str:
    """Returns ``3/100``, or ``3`` where the total is unknown."""
    return f"{done:,}" if total is None else f"{done:,}/{total:,}"


def table_lines(rows: Sequence[Sequence[str]], *, left: Container[int]) -> list[str]:
    """Returns the lines of a table; the columns numbered ``left`` are aligned to the left, all others to the right."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if number in left else cell.rjust(width) for cell in column])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
