"""Starts processes that import next to nothing: they are forked from one that has imported what a run does.

Each is a session of its own, so that `kill` ends what it started, too, as the end of a machine would.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

from arctic_training.data.preparation.workers import socket_folder

ROOT = Path(__file__).resolve().parents[1]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.imported"])


def fork(
    function: Callable[..., Any], arguments: Sequence[Any], environment: Mapping[str, str], log: str | Path
) -> ForkServerProcess:
    """Starts ``function(*arguments)`` in a new process with that environment; what it prints is appended to ``log``.

    Its exit code is what the function returns, 0 for None.
    """
    process = _SERVER.Process(target=_begin, args=(function, arguments, dict(environment), str(log)))
    # the server is started by the first process, and finds what it imports by this path
    path = mock.patch.dict(os.environ, {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"})
    with socket_folder(), path:  # for the socket of the server, whatever TMPDIR is
        process.start()
    return process


def kill(process: ForkServerProcess) -> None:
    """Ends a process with SIGKILL, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()  # it may not be a session of its own yet
    process.join()


def _begin(function: Callable[..., Any], arguments: Sequence[Any], environment: dict[str, str], log: str) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as it is in a process that nobody forked
    os.environ.clear()
    os.environ.update(environment, DS_ACCELERATOR="cpu")
    tempfile.tempdir = None  # it is found anew, by this environment
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(function(*arguments))
