"""Compiling DeepSpeed's C++ operators: one process of a machine at a time, and never behind the lock of a dead one."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from arctic_training.distributed.heartbeat import no_timeout, record_heartbeat
from arctic_training.logging import logger

_QUIET = 120.0
"""Seconds without a change in the folder after which a lock that others have made is taken for a dead process's."""


@contextmanager
def compiling(op: str) -> Iterator[None]:
    """Around the first use of an operator, which torch compiles then. Says what is being waited for.

    torch's own lock is a file that a killed process leaves, and on which every later one waits without an end.
    """
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(op, False))
    with no_timeout(f"compiling {op}"), open(folder.parent / f"arctic_training.{op}.lock", "a+") as own:
        _take(own, op)
        _free(folder, own, op)
        own.truncate(0)
        own.write(f"{socket.gethostname()} {os.getpid()}")
        own.flush()
        if not (folder / f"{op}.so").exists():
            logger.success(f"compiling {op} for this machine, which takes a minute or so, once: {folder}")
        yield


def _take(own: IO[str], op: str) -> None:
    """Wait until no other process of this package compiles ``op``; the system lets go of what a dead one held."""
    told = False
    while True:
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                logger.success(f"waits for the process that compiles {op}: {_note(own)}")
            told = True
            record_heartbeat()
            time.sleep(0.2)
        except OSError:  # a disk without such locks
            return


def _free(folder: Path, own: IO[str], op: str) -> None:
    """Take torch's lock away when who made it is dead."""
    lock = folder / "lock"
    # whoever compiles for this package holds the lock that we hold now; the note says on which machine that was
    ours = _note(own).split(" ")[0] == socket.gethostname()
    told, newest, since = False, _newest(folder), time.monotonic()
    quiet = time.time() - newest
    while lock.exists():
        if not _compilers(folder) and (ours or quiet > _QUIET):
            logger.warning(f"removed {lock}, which a process that was killed while it compiled {op} had left")
            with suppress(FileNotFoundError):
                lock.unlink()
            return
        if not told:
            logger.success(f"waits for another process that compiles {op}; {lock} is its lock")
        told = True
        record_heartbeat()
        time.sleep(0.5)
        if (now := _newest(folder)) != newest:
            newest, since, quiet = now, time.monotonic(), 0.0
        quiet = max(quiet, time.monotonic() - since)  # not by the clock of the day, which may jump


def _newest(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def _compilers(folder: Path) -> list[str]:
    """Processes of this machine that work in ``folder``: a compiler outlives the process that started it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if path.readlink() == folder.resolve():
                found.append(path.parent.name)
    return found


def _note(own: IO[str]) -> str:
    own.seek(0)
    return own.read()
