"""One line on a terminal that says what is done before a run shows its progress. Imports nothing slow.

It is there at once, while the libraries are still being imported, and gone as soon as anything else is printed. A
thread writes it again every second, with the seconds that it takes.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from arctic_training.display import activity
from arctic_training.distributed import environment

_ERASE = "\r\x1b[K"
_WIDTH = 79
_PAUSE = 1.0
"""Seconds between two looks."""

_line: "_Line | None" = None
_lock = threading.RLock()
"""Held while something is written to the terminal, and while this process is forked: the copy has no thread."""


class _Line:
    """The line, from `open` to `close`."""

    def __init__(self) -> None:
        self._streams = sys.stdout, sys.stderr
        self._is_shown, self._is_free = False, True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="starting", daemon=True)

    def open(self) -> None:
        """Begins to show what is done, and erases it whenever something else is printed."""
        sys.stdout, sys.stderr = (cast(TextIO, _Stream(one, self)) for one in self._streams)
        activity.on_begin.append(self.show)
        self._thread.start()

    def close(self) -> None:
        """Erases the line, and leaves the terminal to others."""
        self._over.set()
        self._thread.join()
        self.erase()
        self.restore()

    def restore(self) -> None:
        """Leaves the terminal to others as it is."""
        if self.show in activity.on_begin:
            activity.on_begin.remove(self.show)
        if isinstance(cast(object, sys.stdout), _Stream):
            sys.stdout, sys.stderr = self._streams

    def show(self) -> None:
        """Shows the innermost activity, and the seconds since it began."""
        if not (activities := activity.current()):
            return
        seconds = f" {activities[-1].seconds:.0f} s" if activities[-1].seconds >= _PAUSE else ""
        with _lock:
            self._write(f"{_ERASE}{activities[-1].name} ..."[: _WIDTH - len(seconds) + len(_ERASE)] + seconds)
            self._is_shown = True

    def erase(self) -> None:
        """Erases the line where it is shown."""
        with _lock:
            if self._is_shown:
                self._is_shown = False
                self._write(_ERASE)

    def print(self, stream: TextIO, text: str) -> int:
        """Writes ``text`` to one of the streams in the place of the line."""
        with _lock:
            self.erase()
            self._is_free = text.endswith("\n") if text else self._is_free
            return stream.write(text)

    def _watch(self) -> None:
        while not self._over.wait(_PAUSE):
            with _lock:
                if self._is_free:  # else others are in the middle of a line
                    self.show()

    def _write(self, text: str) -> None:
        try:
            self._streams[0].write(text)
            self._streams[0].flush()
        except OSError:  # the terminal is gone; what is started is not
            pass


class _Stream:
    """A stream before whose output the line is erased."""

    def __init__(self, stream: TextIO, line: _Line) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        return self._line.print(self._stream, text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def starting() -> Iterator[None]:
    """Shows inside, until `close_starting`, what is done on a terminal of a person; does nothing anywhere else,
    nor on any rank but the first."""
    global _line
    is_first = not environment.rank_problem() and environment.rank() == 0
    if _line is None and is_first and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        _line = _Line()
        _line.open()
    try:
        yield
    finally:
        close_starting()


def close_starting() -> None:
    """Ends what `starting` began."""
    global _line
    line, _line = _line, None
    if line is not None:
        line.close()


def _forget() -> None:
    """In a process that is a copy of this one: it has no thread, and the terminal is not its own."""
    global _line, _lock
    line, _line, _lock = _line, None, threading.RLock()
    if line is not None:
        line.restore()


os.register_at_fork(before=lambda: _lock.acquire(), after_in_parent=lambda: _lock.release(), after_in_child=_forget)
