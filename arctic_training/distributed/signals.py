"""The signals that ask a run to end, and who hears them."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def handle_signals(heard: Callable[[int, Any], None]) -> Iterator[None]:
    """Inside, ``heard`` is called with the number of each; afterwards what heard them before hears them again."""
    before = {number: signal.signal(number, heard) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: something that Python cannot name
