"""Formats numbers and times for a person."""


def clock(seconds: float | None) -> str:
    """Returns a time as ``0:01:20``; ``-:--:--`` for None."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def position(done: int, total: int | None) -> str:
    """Returns ``3/100``, or ``3`` where the total is unknown."""
    return f"{done:,}" if total is None else f"{done:,}/{total:,}"
