"""A terminal of 80 columns: runs a program on it and returns what a person sees."""

import os
import pty
import select
import struct
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Protocol

import pyte

from tests.processes import HANG


class Process(Protocol):
    """A program that was started."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...


class Terminal:
    """What a program writes to a terminal of ``columns`` x ``lines``."""

    def __init__(self, columns: int = 80, lines: int = 50) -> None:
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.seen: list[list[str]] = []
        """The screens, each one that differs from the last."""

    def run(
        self,
        start: Callable[[Path], Process],
        watch: Callable[["Terminal", Process], None] = lambda terminal, process: None,
    ) -> int:
        """Returns the exit code of what ``start`` begins, whose output goes to the file that it is called with.

        ``watch`` is called whenever something was written.
        """
        main, end = pty.openpty()
        ioctl(end, TIOCSWINSZ, struct.pack("HHHH", self.screen.lines, self.screen.columns, 0, 0))
        process, deadline = start(Path(os.ttyname(end))), time.monotonic() + HANG
        try:
            while True:
                code = process.poll()  # before the last look
                if select.select([main], [], [], 0.1 if code is None else 0)[0]:
                    self.stream.feed(os.read(main, 1 << 16))
                    if not self.seen or self.seen[-1] != self.text:
                        self.seen.append(self.text)
                    watch(self, process)
                elif code is not None:
                    return code
                assert time.monotonic() < deadline, "\n".join(self.text)
        finally:
            os.close(main)
            os.close(end)

    @property
    def text(self) -> list[str]:
        """The lines of the screen that are not empty."""
        return [line.rstrip() for line in self.screen.display if line.strip()]
