"""Signals: those that ask a run to stop, and the one by which Linux ends a process when its parent dies."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Installs ``handler`` for every one of `STOP_SIGNALS` while the block runs, then restores the former handlers."""
    with keep_handlers():
        for number in STOP_SIGNALS:
            signal.signal(number, handler)
        yield


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Restores the handlers of `STOP_SIGNALS` after the block, whoever has replaced them inside."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # no other thread can have replaced them
            for number, former in before.items():
                signal.signal(number, former or signal.SIG_DFL)  # None: a handler that was not installed from Python


def set_parent_death_signal(parent: int) -> None:
    """Has the kernel kill this process when ``parent``, the process that started it, dies; exits at once if it has.

    Does nothing on systems other than Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
