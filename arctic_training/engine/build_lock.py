"""The lock around the compilation of DeepSpeed's C++ operators: one process of a machine compiles, the others wait.

torch's own lock is a file that a killed process leaves behind, and on which every later process waits forever.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from arctic_training.distributed.heartbeat import no_timeout
from arctic_training.logging import logger

_STALE_AFTER = 120.0
"""Seconds without a change in the folder after which torch's lock, held on an unknown machine, counts as stale."""


@contextmanager
def build_lock(op: str) -> Iterator[None]:
    """Holds the lock of an operator around its first use, in which torch compiles it; removes torch's stale lock."""
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(op, False))
    lock = FileLock(folder.parent / f"arctic_training.{op}.lock", fallback_to_soft=False)
    holder = folder.parent / f"arctic_training.{op}.host"
    with no_timeout(f"compiling {op}"):
        _acquire(lock, holder, op)
        try:
            _remove_stale_lock(folder, _read(holder) == socket.gethostname(), op)
            holder.write_text(socket.gethostname(), encoding="utf-8")
            if not (folder / f"{op}.so").exists():
                logger.success(f"compiling {op} for this machine (once, about a minute): {folder}")
            yield
        finally:
            lock.release()


def _acquire(lock: FileLock, holder: Path, op: str) -> None:
    """Waits until no other process of this package compiles ``op``; the system releases the lock of a dead one."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.success(f"waiting for the process on {_read(holder)} that compiles {op}")
        lock.acquire()
    except (OSError, NotImplementedError):  # a file system without such locks
        return


def _remove_stale_lock(folder: Path, is_own: bool, op: str) -> None:
    """Removes torch's lock when the process that made it is dead; else waits for it.

    Whoever compiles for this package holds the lock that we hold now. So a lock from the last holder's machine, when it
    is this one (``is_own``), is stale if no compiler runs here.
    """
    lock = folder / "lock"
    logged, newest, since = False, _last_change(folder), time.monotonic()
    unchanged = time.time() - newest
    while lock.exists():
        if not _is_compiling(folder) and (is_own or unchanged > _STALE_AFTER):
            logger.warning(f"removed the stale lock {lock} of a process that was killed while it compiled {op}")
            with suppress(FileNotFoundError):
                lock.unlink()
            return
        if not logged:
            logger.success(f"waiting for another process that compiles {op} and holds {lock}")
        logged = True
        time.sleep(0.5)
        if (now := _last_change(folder)) != newest:
            newest, since, unchanged = now, time.monotonic(), 0.0
        unchanged = max(unchanged, time.monotonic() - since)  # not by the wall clock, which may jump


def _last_change(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def _is_compiling(folder: Path) -> bool:
    """Returns whether a process of this machine works in ``folder``; a compiler outlives the one that started it."""
    path = str(folder.resolve())
    return any(process.info["cwd"] == path for process in psutil.process_iter(["cwd"]))


def _read(holder: Path) -> str:
    with suppress(OSError):
        return holder.read_text(encoding="utf-8")
    return ""
