"""Shows a person what the run is doing: as bars on a terminal and in a notebook, as lines in a file or a pipe.

A thread looks twice a second; the run itself only notes what it does (see `display.activity`).
"""

import importlib.util
import os
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from arctic_training.display import activity
from arctic_training.display.bar import Bar
from arctic_training.display.format import clock, position
from arctic_training.display.starting import close_starting

if TYPE_CHECKING:
    from rich.console import Console

Style = Literal["auto", "bar", "lines", "none"]

_PAUSE = 0.5
"""Seconds between two looks."""
_SILENCE = 2.0
"""Seconds after which a line says what takes so long."""
_REPEAT = 30.0
"""Seconds between lines that say how far it is."""

_lock = threading.Lock()
"""Held while something is shown, and while this process is forked: the copy could not release another lock."""
_display: "_Display | None" = None


class _Display:
    """The display of this process, until `close`."""

    def __init__(self, bar: Bar | None) -> None:
        self.bar = bar
        self._over = threading.Event()
        self._next: dict[activity.Activity, float] = {}
        """When a line says next how far an activity is, in seconds since it began."""
        if bar is not None:
            bar.start()
        if bar is not None and bar.console.is_jupyter:  # where another thread's output would go to another cell
            activity.on_begin.append(bar.refresh)
            self._thread = None
        else:
            self._thread = threading.Thread(target=self._watch, name="display", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread, and shows the last state."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self.bar is not None:
            if self.bar.refresh in activity.on_begin:
                activity.on_begin.remove(self.bar.refresh)
            self.bar.stop()

    def _watch(self) -> None:
        while not self._over.wait(_PAUSE):
            try:
                with _lock:
                    self._look()
            except OSError:  # the terminal is gone; the run is not
                return
            except Exception:  # what is shown changes meanwhile: the next look is another
                continue

    def _look(self) -> None:
        if self.bar is not None:
            self.bar.refresh()
            return
        activities = activity.current()
        self._next = {one: self._next.get(one, _SILENCE) for one in activities}
        if activities and (one := activities[-1]).seconds >= self._next[one] and one.name != RUN:
            self._next[one] = one.seconds + _REPEAT
            print(_line(one), flush=True)


RUN = "training"
"""The activity of the whole run, whose lines are its metrics."""


def _line(one: activity.Activity) -> str:
    if one.total is None or not one.done:
        return f"{one.name} ..."
    return f"{one.name}: {position(one.done, one.total)} | eta {clock(one.seconds_left)}"


def open_display(style: Style) -> None:
    """Shows what this process does from now on, in the ``style`` of the recipe; does nothing when it does already."""
    global _display
    close_starting()
    if _display is not None or style == "none":
        return
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    _display = _Display(Bar(console) if shows_bar(console, style) else None)


def close_display() -> None:
    """Ends what `open_display` began; the last bar stays on the terminal."""
    global _display
    display, _display = _display, None
    if display is not None:
        display.close()


def has_bar() -> bool:
    """Returns whether numbers are shown beside a bar, so that no line is printed for each step."""
    return _display is not None and _display.bar is not None


def show_numbers(values: Mapping[str, str]) -> None:
    """Shows ``values``, texts by name, below the bar of the run."""
    if _display is not None and _display.bar is not None:
        _display.bar.numbers = dict(values)
        if _display.bar.console.is_jupyter:
            _display.bar.refresh()


def shows_bar(console: "Console", style: Style) -> bool:
    """Returns whether ``console`` can show a bar and ``style`` does not rule it out."""
    if style in ("lines", "none"):
        return False
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return style == "bar" or (console.is_terminal and not console.is_dumb_terminal)


def _forget() -> None:
    """In a process that is a copy of this one: it has no thread, and the terminal is not its own."""
    global _display, _lock
    display, _display, _lock = _display, None, threading.Lock()
    activity.on_begin.clear()
    if display is not None and display.bar is not None:
        display.bar.forget()


os.register_at_fork(before=lambda: _lock.acquire(), after_in_parent=lambda: _lock.release(), after_in_child=_forget)
