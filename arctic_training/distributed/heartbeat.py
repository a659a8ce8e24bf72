"""The heartbeat of this process: when it last made progress, and in which phase. Imports nothing of the package."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_last = (time.monotonic(), "startup")
_suspended = 0


def record_heartbeat(phase: str = "") -> None:
    """Records that the process made progress, and the phase that it enters when that is another one."""
    global _last
    _last = (time.monotonic(), phase or _last[1])


def age() -> float:
    """Returns the seconds since the last heartbeat; 0 inside `no_timeout`."""
    return 0.0 if _suspended else time.monotonic() - _last[0]


def phase() -> str:
    """Returns what the process was doing at its last heartbeat: an event of the trainer, such as ``step``."""
    return _last[1]


@contextmanager
def no_timeout(phase: str) -> Iterator[None]:
    """Lets the block take as long as it needs: `age` is 0 inside, so only the death of the process is noticed."""
    global _suspended
    record_heartbeat(phase)
    _suspended += 1
    try:
        yield
    finally:
        _suspended -= 1
        record_heartbeat()
