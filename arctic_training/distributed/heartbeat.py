"""This process's signs of life: that it came on, when, and in what. Knows nobody, so that everybody may give one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_last = (time.monotonic(), "its start")
_unhurried = 0


def record_heartbeat(doing: str = "") -> None:
    """Say that the process came on, and what it does from here when that is another thing."""
    global _last
    _last = (time.monotonic(), doing or _last[1])


def age() -> float:
    """Seconds since the last sign of life."""
    return 0.0 if _unhurried else time.monotonic() - _last[0]


def phase() -> str:
    return _last[1]


@contextmanager
def no_timeout(what: str) -> Iterator[None]:
    """What is done inside may take as long as it takes: that the process lives is enough."""
    global _unhurried
    record_heartbeat(what)
    _unhurried += 1
    try:
        yield
    finally:
        _unhurried -= 1
        record_heartbeat()
