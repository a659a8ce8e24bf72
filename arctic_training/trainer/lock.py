"""A lock on a folder, held by the operating system for as long as the process of a run lives."""

import contextlib
import fcntl
import gc
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from weakref import WeakValueDictionary

from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import InputError
from arctic_training.logging import logger

LOCK = ".lock"
_held: WeakValueDictionary[Path, "Lock"] = WeakValueDictionary()
"""Holders of folders in this process: the locks of the operating system do not tell objects of one process apart."""


class Lock:
    """Locks folders for this run. The main process takes the locks; every rank raises when one is refused.

    The operating system releases a lock when the process ends, however that happens, so a lock is never stale; the
    text in the file is for people. Other machines are locked out where the file system's locks reach them (NFS 4).
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        """Raises `InputError` on every rank when another run holds one of ``folders``, or one cannot be written to.

        Creates missing folders; `release` removes those that are still empty.
        """
        self._files: dict[Path, int] = {}
        self._created_folders: list[Path] = []
        problem = ""
        if process_group.is_main():
            try:
                for folder in dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders):
                    self._take(folder)
            except InputError as error:
                problem = str(error)
            except OSError as error:
                problem = f"{error.filename}: cannot be written: {error.strerror}"
        if problem := collectives.broadcast_object(problem):
            self.release()
            raise InputError(problem)

    def release(self) -> None:
        """Releases the locks, and removes lock files and folders that are still empty."""
        while self._files:
            folder, file = self._files.popitem()
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()  # while it is held: whoever waits for it sees that it is gone
            os.close(file)
        while self._created_folders:
            with contextlib.suppress(OSError):
                self._created_folders.pop().rmdir()
        for folder in [folder for folder, holder in _held.items() if holder is self]:
            del _held[folder]

    def _take(self, folder: Path) -> None:
        if folder in _held:
            gc.collect()  # a trainer without references releases its locks
        if _held.setdefault(folder, self) is not self:
            raise InputError(
                f"{folder}: another trainer of this process is using this folder; "
                "close it (trainer.close()), or give this one an output_dir of its own"
            )
        while True:
            self._make(folder)
            with contextlib.suppress(FileNotFoundError):  # removed by a run that ended just now
                file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
                if self._locked(folder, file) and os.fstat(file).st_ino == (folder / LOCK).stat().st_ino:
                    break
                os.close(file)
        self._files[folder] = file
        before, me = os.pread(file, 1000, 0).decode(errors="replace").strip(), f"process {os.getpid()} on "
        if before and not before.startswith(me):
            logger.success(f"{folder}: took over the lock of {before}, which ended without releasing it")
        os.ftruncate(file, 0)
        text = f"{me}{socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        os.pwrite(file, text.encode(), 0)

    def _locked(self, folder: Path, file: int) -> bool:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(file, 1000, 0).decode(errors="replace").strip() or "a process that is just starting"
            os.close(file)
            raise InputError(
                f"{folder}: another run is using this folder: {holder}; "
                "wait for its end, stop it, or give this run an output_dir of its own"
            ) from None
        except OSError as error:  # a file system without locks
            logger.warning(f"{folder}: this file system has no locks ({error.strerror}); a second run can start")
        return True

    def _make(self, folder: Path) -> None:
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        for one in reversed(missing):
            with contextlib.suppress(FileExistsError):
                one.mkdir()
                self._created_folders.append(one)
