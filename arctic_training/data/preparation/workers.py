"""Worker processes for data: how they start and end, why one died, and the folder of their sockets."""

import gc
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from arctic_training.distributed.signals import STOP_SIGNALS, set_parent_death_signal
from arctic_training.errors.types import DataError

_WHY = {
    signal.SIGKILL: "; the system does so when the machine's memory is full, see dmesg: lower data.dl_num_workers",
    signal.SIGBUS: "; shared memory is full: enlarge /dev/shm, or lower data.dl_num_workers",
}
"""What is likely when a signal ended a worker."""
_NAME = f"at-{zlib.crc32(socket.gethostname().encode()):08x}-"
"""The prefix of a process's folder."""
_LONGEST = 103 - len("/listener-12345678")
"""Most bytes in the path of a folder with sockets: their own paths may have 107 on Linux, 103 on a Mac."""


def start_worker(parent: int, worker: int) -> None:
    """Has a worker, which runs this first, end when its parent does, however that ends."""
    set_parent_death_signal(parent)
    for number in STOP_SIGNALS:
        # a signal to the process group asks the run to stop gracefully, and until then it reads on
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def mapping() -> Iterator[None]:
    """Makes the processes that `datasets` forks inside, a pool and its queue, end with their parent."""
    import multiprocess
    from multiprocess.util import register_after_fork

    hook = _AfterFork()
    register_after_fork(hook, _AfterFork.set_signals)  # as long as it lives
    try:
        with socket_folder(multiprocess), without_garbage():
            yield
    finally:
        del hook


@contextmanager
def without_garbage() -> Iterator[None]:
    """Collects garbage, and keeps what is left from the collectors of processes that are forked inside.

    In such a process the destructor of a process group, which an earlier run may have left, would wait for threads that
    only the parent has.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _AfterFork:
    """Runs `set_signals` in every process that `multiprocess` forks, while it exists."""

    def set_signals(self) -> None:
        import multiprocess

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # their parent handles it, and ends them
        # by this signal; with the parent's handler they would wait for ever
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        set_parent_death_signal(multiprocess.parent_process().pid)


def shutdown_workers(running: Any) -> None:
    """Ends the workers of torch's iterator; torch itself would do so by a signal that they ignore."""
    running._shutdown_workers()
    for worker in running._workers:
        if worker.is_alive():
            worker.kill()


@contextmanager
def without_sigchld_handler() -> Iterator[None]:
    """Keeps torch from installing a handler that raises wherever the process is when a worker dies, be it in a save.

    The one who waits for the worker's batch gets the error.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


@contextmanager
def socket_folder(library: ModuleType = multiprocessing) -> Iterator[None]:
    """Sets one folder, named by this process, for the sockets of workers that ``library`` starts inside.

    By default each worker creates a folder of its own, which it leaves when it is killed; here the next process removes
    the folders of those that have ended. The folder is in that for temporary files, or in ``/tmp`` where its path would
    be too long for a socket, as under a scheduler. Raises `DataError` when it cannot be created.
    """
    name = f"{_NAME}{os.getpid()}"
    mine = Path(tempfile.gettempdir(), name)
    if len(os.fsencode(mine)) > _LONGEST:
        mine = Path("/tmp", name)
    for old in mine.parent.glob(f"{_NAME}*"):
        owner = old.name.removeprefix(_NAME)
        if not owner.isdigit() or not is_running(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    if not mine.exists():
        try:
            mine.mkdir(mode=0o700)
        except OSError as error:
            raise DataError(
                f"the folder {mine}, for the sockets of worker processes, cannot be created: {error.strerror}; set "
                f"TMPDIR to a writable folder of at most {_LONGEST - len(name) - 1} bytes, or data.num_proc: 1 and"
                " data.dl_num_workers: 0"
            ) from error
        Finalize(None, shutil.rmtree, (mine, True), exitpriority=-100)  # at the exit of this process, not of a fork
    process = library.current_process()
    before = process._config.get("tempdir")
    process._config["tempdir"] = str(mine)
    try:
        yield
    finally:
        process._config["tempdir"] = before


def is_running(pid: int) -> bool:
    """Returns whether a process runs; one that has ended and that its parent has not waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def describe_dead_worker(running: Any) -> str:
    """Returns which worker of torch's iterator died, and why; empty when none did."""
    workers, end = getattr(running, "_workers", []), time.monotonic() + 1
    while not (dead := [worker for worker in workers if worker.exitcode]) and workers and time.monotonic() < end:
        time.sleep(0.02)
    if not dead:
        return ""
    who, code = f"a worker of the data loader (process {dead[0].pid})", dead[0].exitcode
    if code > 0:
        return f"{who} ended with exit code {code}; data.dl_num_workers: 0 shows why"
    return f"{who} was ended by {signal.Signals(-code).name}{_WHY.get(-code, '')}"
