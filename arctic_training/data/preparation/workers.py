"""What the processes that help with data begin with, what ended one that died, and what they may leave on disk."""

import atexit
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from arctic_training.distributed.signals import STOP_SIGNALS, set_parent_death_signal
from arctic_training.errors.types import DataError

_WHY = {
    signal.SIGKILL: "; the system does so when the machine's memory is full, see dmesg: lower data.dl_num_workers",
    signal.SIGBUS: "; shared memory is full: enlarge /dev/shm, or lower data.dl_num_workers",
}
"""What it means that a worker was ended by a signal."""
_NAME = f"at-{zlib.crc32(socket.gethostname().encode()):08x}-"
"""Begins the folder of a process."""
_LONGEST = 103 - len("/listener-12345678")
"""Bytes of the path of a folder with sockets: their own paths may have 107 on Linux, and 103 on a Mac."""


def worker_init_fn() -> Callable[[int], None]:
    """What each worker does first: it ends with its process, however that ended."""
    return partial(_begin, os.getpid())


def _begin(parent: int, worker: int) -> None:
    set_parent_death_signal(parent)
    for number in STOP_SIGNALS:
        # what is sent to the whole group asks the run to end in good order, for which it reads on
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def mapping() -> Iterator[None]:
    """Processes that `datasets` forks inside, its pool and what serves their queue, end with their parent too."""
    import multiprocess
    from multiprocess.util import register_after_fork

    inside = _Inside()
    register_after_fork(inside, _Inside.set_signals)  # as long as it lives
    try:
        with own_folder(multiprocess):
            yield
    finally:
        del inside


class _Inside:
    def set_signals(self) -> None:
        import multiprocess

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # their parent hears it, and ends them
        # by this; with what hears it in the parent they would wait for ever
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        set_parent_death_signal(multiprocess.parent_process().pid)


def shutdown_workers(running: Any) -> None:
    """End the workers of torch's iterator; torch itself would do so by a signal that they do not hear."""
    running._shutdown_workers()
    for worker in running._workers:
        if worker.is_alive():
            worker.kill()


@contextmanager
def without_sigchld_handler() -> Iterator[None]:
    """Inside, torch does not learn to raise an error wherever the process is when a worker dies, be it in a save.

    Whoever waits for the worker's batch is told.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


@contextmanager
def own_folder(library: Any = multiprocessing) -> Iterator[None]:
    """Workers that ``library`` starts inside have their sockets in a folder by which those of a dead process are known.

    Each would make a folder of its own, which one that is killed leaves. Here the next start removes it. It is in the
    folder for temporary files, or, where that has too long a path (a scheduler's often has), in ``/tmp``. Raises
    `DataError` when it cannot be made.
    """
    name = f"{_NAME}{os.getpid()}"
    mine = Path(tempfile.gettempdir(), name)
    if len(os.fsencode(mine)) > _LONGEST:
        mine = Path("/tmp", name)
    for old in mine.parent.glob(f"{_NAME}*"):
        if not _alive(old.name.removeprefix(_NAME)):
            shutil.rmtree(old, ignore_errors=True)
    if not mine.exists():
        try:
            mine.mkdir(mode=0o700)
        except OSError as error:
            raise DataError(
                f"the folder {mine}, for the sockets of worker processes, cannot be made: {error.strerror}; let TMPDIR"
                f" name a folder that can be written, of at most {_LONGEST - len(name) - 1} bytes, or let data.num_proc"
                " be 1 and data.dl_num_workers 0"
            ) from error
        atexit.register(_remove, mine, os.getpid())
    process: Any = library.current_process()
    before = process._config.get("tempdir")
    process._config["tempdir"] = str(mine)
    try:
        yield
    finally:
        process._config["tempdir"] = before


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and not in a fork of it
        shutil.rmtree(folder, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def describe_dead_worker(running: Any) -> str:
    """Which worker of torch's iterator died, and of what; empty when none did."""
    workers, end = getattr(running, "_workers", []), time.monotonic() + 1
    while not (dead := [worker for worker in workers if worker.exitcode]) and workers and time.monotonic() < end:
        time.sleep(0.02)
    if not dead:
        return ""
    who, code = f"a worker of the data loader (process {dead[0].pid})", dead[0].exitcode
    if code > 0:
        return f"{who} ended with exit code {code}; data.dl_num_workers: 0 shows why"
    return f"{who} was ended by {signal.Signals(-code).name}{_WHY.get(-code, '')}"
