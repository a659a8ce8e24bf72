"""Runs functions in several real processes that form one run, and cleans up whatever becomes of them."""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import multiprocessing
import os
import pickle
import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from arctic_training.distributed import collectives
from tests.forkserver import ROOT, fork, kill

HANG = 900.0
"""Seconds after which what a test waits for is taken to hang. It bounds nothing: a busy machine takes its time."""

_CREWS: dict[int, "WorkerPool"] = {}


def free_port() -> int:
    """Returns a port that nobody listens on, below those that the system hands out to whoever connects."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """Returns the environment that a launcher gives each process."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    variables |= {"OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    return {**os.environ, **{name: str(value) for name, value in variables.items()}}


def run(function: Callable[..., Any], world: int, *args: Any, timeout: float = HANG, **kwargs: Any) -> list[Any]:
    """What ``function(*args, **kwargs)`` returns in each of ``world`` forked processes, by rank.

    The function must be importable: a top-level one of a test module. Fails with what all of them printed when one
    fails; kills all of them when ``timeout`` seconds are over.
    """
    crew = WorkerPool(world)
    try:
        return crew.do(function, args, kwargs, timeout, last=True)
    finally:
        crew.end()


def share(function: Callable[..., Any], world: int, *args: Any, timeout: float = HANG, **kwargs: Any) -> list[Any]:
    """`run` in processes that are kept for the next call: they have joined once, and must not leave the run.

    Saves the seconds of imports, for functions that leave nothing behind in their process.
    """
    crew = _CREWS.get(world) or _CREWS.setdefault(world, WorkerPool(world))
    try:
        return crew.do(function, args, kwargs, timeout)
    except BaseException:
        _CREWS.pop(world).end()
        raise


class WorkerPool:
    """Forked processes that do one job after the other."""

    def __init__(self, world: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.jobs = 0
        port = free_port()
        self.processes, self.pipes = [], []
        for rank in range(world):
            receiver, sender = multiprocessing.Pipe(duplex=False)
            self.pipes.append(sender)
            own = environment(rank, world, port)
            self.processes.append(fork(_work, (receiver, Path(self.folder.name)), own, self._path("log", rank)))
            receiver.close()
        atexit.register(self.end)

    def do(self, function: Callable[..., Any], args: Any, kwargs: Any, timeout: float, last: bool = False) -> list[Any]:
        job = pickle.dumps((self.jobs, function.__module__, function.__name__, args, kwargs, last))
        logs = [self._path("log", rank) for rank in range(len(self.processes))]
        logged = [log.stat().st_size if log.exists() else 0 for log in logs]
        for pipe in self.pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.send_bytes(job)
        done = [self._path(f"value_{self.jobs}", rank) for rank in range(len(self.processes))]
        self.jobs += 1
        end = time.monotonic() + timeout
        while not self._over(done, last) and time.monotonic() < end:
            time.sleep(0.02)
        codes = [process.exitcode for process in self.processes]
        if not all(one.exists() for one in done) or any(codes) or (last and None in codes):
            self._write_stacks()
            printed = [log.read_bytes()[start:][-6000:] for log, start in zip(logs, logged, strict=True)]
            texts = "\n".join(
                f"--- rank {n}, {'still running' if code is None else f'exit {code}'}\n{text.decode(errors='replace')}"
                for n, (code, text) in enumerate(zip(codes, printed, strict=True))
            )
            raise AssertionError(f"{function.__name__} failed in {len(codes)} processes\n{texts}")
        values, counts = zip(*(pickle.loads(one.read_bytes()) for one in done), strict=True)
        assert len(set(counts)) == 1, f"{function.__name__} leaves processes that would wait in vain: {counts}"
        return list(values)

    def _write_stacks(self) -> None:
        """Has the processes that still run write the stacks of their threads to their logs."""
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGUSR2)
        time.sleep(0.5)

    def end(self) -> None:
        for process in self.processes:
            kill(process)
        for pipe in self.pipes:
            pipe.close()
        self.folder.cleanup()
        atexit.unregister(self.end)

    def _path(self, what: str, rank: int) -> Path:
        return Path(self.folder.name) / f"{what}_{rank}"

    def _over(self, done: list[Path], last: bool) -> bool:
        codes = [process.exitcode for process in self.processes]
        if any(code is not None and (code or not last) for code in codes):
            time.sleep(1)  # let the others say what they think of it
            return True
        return None not in codes if last else all(one.exists() for one in done)


def _counts() -> tuple[int, int]:
    """What the processes count alike, each for itself, and meet by: turns of `main_process_first`, and groups."""
    return collectives._num_turns, dist.distributed_c10d._world.group_count


def _work(jobs: Connection, folder: Path) -> None:
    """One process of a crew: read a job, do it, leave its value in a file."""
    os.chdir(folder)
    faulthandler.register(signal.SIGUSR2, file=2)
    while True:
        try:
            job = jobs.recv_bytes()
        except EOFError:  # the tests are over
            return
        number, module, name, args, kwargs, last = pickle.loads(job)
        value = getattr(importlib.import_module(module), name)(*args, **kwargs)
        file = folder / f"value_{number}_{os.environ['RANK']}"
        file.with_suffix(".part").write_bytes(pickle.dumps((value, _counts())))
        file.with_suffix(".part").rename(file)
        if last:
            return
        if not number:  # what has been imported stays: looking through it for garbage takes longer than a small run
            gc.collect()
            gc.freeze()
