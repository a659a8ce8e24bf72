"""Names what this process is doing, and how far it is, for those who wait. Imports nothing of the package.

Whatever takes long says so here, at the cost of a list's entry; `display.watch` shows it to a person.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Activity:
    """Something that takes a while, such as an evaluation."""

    name: str
    """What is done, as a clause: ``loading the model``."""
    total: int | None = None
    """How many parts it has; None where that is unknown."""
    done: int = 0
    """How many parts of it are done."""
    first: int = field(init=False)
    """How many were done when it began, such as the steps of a run that is resumed."""
    began: float = field(default_factory=time.perf_counter)
    """When it began, in seconds of `time.perf_counter`."""

    def __post_init__(self) -> None:
        self.first = self.done

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.began

    @property
    def seconds_left(self) -> float | None:
        """Seconds until it is over, at the mean speed since it began; None where that is unknown."""
        done = self.done - self.first
        if self.total is None or done <= 0:
            return None
        return self.seconds / done * max(self.total - self.done, 0)


on_begin: list[Callable[[], None]] = []
"""Functions that are called whenever an activity begins."""
_current: list[Activity] = []
_aside: list[Activity] = []
_seconds_aside = 0.0


def current() -> list[Activity]:
    """Returns what is being done, each activity before those that are part of it."""
    return list(_current)


def seconds_aside() -> float:
    """Returns the seconds that activities ``aside`` from training have taken so far."""
    return _seconds_aside + (_aside[0].seconds if _aside else 0.0)


@contextmanager
def activity(name: str, total: int | None = None, *, done: int = 0, aside: bool = False) -> Iterator[Activity]:
    """Says that the block does what ``name`` says; the block sets ``done`` of what is yielded.

    ``aside``: the time that it takes is not that of training steps.
    """
    global _seconds_aside
    one = Activity(name, total, done)
    _current.append(one)
    if aside:
        _aside.append(one)
    for call in on_begin:
        call()
    try:
        yield one
    finally:
        _current.remove(one)
        if aside:
            if _aside[0] is one:
                _seconds_aside += one.seconds
            _aside.remove(one)
