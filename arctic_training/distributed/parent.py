"""A process that ends with the one that started it, however that ended."""

import ctypes
import os
import signal
import sys


def end_with_parent(parent: int) -> None:
    """Let the system end this process when ``parent``, which started it, is gone; at once if it is. Linux only."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it went before this could be said
        os._exit(1)
