"""Progress bars of libraries, which are shown among this package's own instead of over them."""

import io
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

_MIN_SECONDS = 0.5
"""Seconds that a bar lasts before it is shown."""


class LibraryBar(NamedTuple):
    """Progress that a library reports."""

    name: str
    done: float
    total: float | None
    text: str
    """Both for a person, in the library's unit."""


class _Nowhere(io.StringIO):
    """A terminal that nobody sees."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def captured_bars() -> AbstractContextManager[None]:
    """Keeps the bars of tqdm, by which transformers, datasets and huggingface_hub show theirs, from being printed."""
    return _bars_with(file=_Nowhere())


@contextmanager
def without_progress_bars(*, keep_in_terminal: bool = False) -> Iterator[None]:
    """Disables the bars of tqdm inside. ``keep_in_terminal``: not where standard error is a terminal."""
    if keep_in_terminal and sys.stderr.isatty():
        yield
        return
    with _without_side_effects(), _bars_with(disable=True):
        yield


@contextmanager
def _without_side_effects() -> Iterator[None]:
    """Keeps tqdm, whose disabled bars do so too, from choosing how processes are started, and from starting a thread.

    The former comes with its lock, the latter is its monitor.
    """
    from tqdm import std

    interval, std.tqdm.monitor_interval = std.tqdm.monitor_interval, 0
    is_first = not hasattr(std.tqdm, "_lock")
    if is_first:
        std.tqdm.set_lock(threading.RLock())
    try:
        yield
    finally:
        std.tqdm.monitor_interval = interval
        if is_first:
            del std.tqdm._lock


@contextmanager
def _bars_with(**overrides: object) -> Iterator[None]:
    """Gives every bar of tqdm that is created inside these arguments."""
    from tqdm import std

    original = std.tqdm.__init__

    def create(self: object, *args: object, **kwargs: object) -> None:
        original(self, *args, **{**kwargs, **overrides})

    std.tqdm.__init__ = create
    try:
        yield
    finally:
        std.tqdm.__init__ = original


def library_bars() -> list[LibraryBar]:
    """Returns the bars of tqdm that are open."""
    from tqdm import std

    bars = []
    for bar in list(getattr(std.tqdm, "_instances", ())):
        values: Mapping[str, object] = {} if bar.disable else bar.format_dict
        elapsed, done, total = (values.get(key) for key in ("elapsed", "n", "total"))
        if not isinstance(elapsed, float | int) or elapsed < _MIN_SECONDS or not isinstance(done, int | float):
            continue
        known = float(total) if isinstance(total, int | float) else None
        numbers = [done] if known is None else [done, known]
        scaled = [bar.format_sizeof(one, bar.unit) if bar.unit_scale else f"{one:,.0f}" for one in numbers]
        bars.append(LibraryBar(str(values.get("prefix") or "").strip(": "), float(done), known, "/".join(scaled)))
    return bars
