"""A process that ends with the one that started it, however that ended."""

import ctypes
import os
import signal
import sys


def set_parent_death_signal(parent: int) -> None:
    """Let the system end this process when ``parent``, which started it, is gone; at once if it is. Linux only."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it went before this could be said
        os._exit(1)
