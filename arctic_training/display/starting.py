"""One line on a terminal that says what is done before a run shows its progress. Imports nothing slow.

It is there at once, while the libraries are still being imported, and gone as soon as anything else is printed.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from arctic_training.display import activity
from arctic_training.distributed import environment

_ERASE = "\r\x1b[K"
_WIDTH = 79

_line: "_Line | None" = None


class _Line:
    """The line, from `open` to `close`."""

    def __init__(self) -> None:
        self._streams = sys.stdout, sys.stderr
        self._is_shown = False

    def open(self) -> None:
        """Begins to show what is done, and erases it whenever something else is printed."""
        sys.stdout, sys.stderr = (cast(TextIO, _Stream(one, self.erase)) for one in self._streams)
        activity.on_begin.append(self.show)

    def close(self) -> None:
        """Erases the line, and leaves the terminal to others."""
        self.erase()
        if self.show in activity.on_begin:
            activity.on_begin.remove(self.show)
        if isinstance(cast(object, sys.stdout), _Stream):
            sys.stdout, sys.stderr = self._streams

    def show(self) -> None:
        """Shows the innermost activity."""
        self._write(f"{_ERASE}{activity.current()[-1].name} ..."[: _WIDTH + len(_ERASE)])
        self._is_shown = True

    def erase(self) -> None:
        """Erases the line where it is shown."""
        if self._is_shown:
            self._is_shown = False
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        try:
            self._streams[0].write(text)
            self._streams[0].flush()
        except OSError:  # the terminal is gone; what is started is not
            pass


class _Stream:
    """A stream before whose output the line is erased."""

    def __init__(self, stream: TextIO, erase: Callable[[], None]) -> None:
        self._stream, self._erase = stream, erase

    def write(self, text: str) -> int:
        self._erase()
        return self._stream.write(text)

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
