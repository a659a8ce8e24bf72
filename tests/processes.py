"""Runs functions in several real processes that form one run, and cleans up whatever becomes of them."""

import atexit
import contextlib
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HANG = 900.0
"""Seconds after which what a test waits for is taken to hang. It bounds nothing: a busy machine takes its time."""

_CREWS: dict[int, "Crew"] = {}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What a launcher tells each process."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    told |= {"OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    return {**os.environ, **{name: str(value) for name, value in told.items()}}


def start(command: list[str], world: int, **options: Any) -> list[subprocess.Popen[bytes]]:
    """The same command in ``world`` processes, each in a session of its own. The caller ends them: see `stop`."""
    port = free_port()
    return [
        subprocess.Popen(command, env=environment(rank, world, port), start_new_session=True, **options)
        for rank in range(world)
    ]


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill what is left of them and of their children."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(function: Callable[..., Any], world: int, *args: Any, timeout: float = HANG, **kwargs: Any) -> list[Any]:
    """What ``function(*args, **kwargs)`` returns in each of ``world`` new processes, by rank.

    The function must be importable: a top-level one of a test module. Fails with what all of them printed when one
    fails; kills all of them when ``timeout`` seconds are over.
    """
    crew = Crew(world)
    try:
        return crew.do(function, args, kwargs, timeout, last=True)
    finally:
        crew.end()


def share(function: Callable[..., Any], world: int, *args: Any, timeout: float = HANG, **kwargs: Any) -> list[Any]:
    """`run` in processes that are kept for the next call: they have joined once, and must not leave the run.

    Saves the seconds of imports, for functions that leave nothing behind in their process.
    """
    crew = _CREWS.get(world) or _CREWS.setdefault(world, Crew(world))
    try:
        return crew.do(function, args, kwargs, timeout)
    except BaseException:
        _CREWS.pop(world).end()
        raise


class Crew:
    """Processes that do one job after the other."""

    def __init__(self, world: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.jobs = 0
        port = free_port()
        self.processes = []
        for rank in range(world):
            with open(self._path("log", rank), "wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, __file__, self.folder.name],
                        env=environment(rank, world, port),
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        cwd=self.folder.name,
                        start_new_session=True,
                    )
                )
        atexit.register(self.end)

    def do(self, function: Callable[..., Any], args: Any, kwargs: Any, timeout: float, last: bool = False) -> list[Any]:
        job = pickle.dumps((self.jobs, function.__module__, function.__name__, args, kwargs, last))
        logged = [self._path("log", rank).stat().st_size for rank in range(len(self.processes))]
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(len(job).to_bytes(8, "big") + job)
                process.stdin.flush()
        done = [self._path(f"value_{self.jobs}", rank) for rank in range(len(self.processes))]
        self.jobs += 1
        end = time.monotonic() + timeout
        while not self._over(done, last) and time.monotonic() < end:
            time.sleep(0.02)
        codes = [process.poll() for process in self.processes]
        if not all(one.exists() for one in done) or any(codes) or (last and None in codes):
            told = [self._path("log", rank).read_bytes()[at:][-6000:] for rank, at in enumerate(logged)]
            said = "\n".join(
                f"--- rank {n}, {'still running' if code is None else f'exit {code}'}\n{text.decode(errors='replace')}"
                for n, (code, text) in enumerate(zip(codes, told, strict=True))
            )
            raise AssertionError(f"{function.__name__} failed in {len(codes)} processes\n{said}")
        return [pickle.loads(one.read_bytes()) for one in done]

    def end(self) -> None:
        stop(self.processes)
        for process in self.processes:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        self.folder.cleanup()
        atexit.unregister(self.end)

    def _path(self, what: str, rank: int) -> Path:
        return Path(self.folder.name) / f"{what}_{rank}"

    def _over(self, done: list[Path], last: bool) -> bool:
        codes = [process.poll() for process in self.processes]
        if any(code is not None and (code or not last) for code in codes):
            time.sleep(1)  # let the others say what they think of it
            return True
        return None not in codes if last else all(one.exists() for one in done)


def _work(folder: Path) -> None:
    """One process of a crew: read a job, do it, leave its value in a file."""
    import importlib

    while size := sys.stdin.buffer.read(8):
        job = pickle.loads(sys.stdin.buffer.read(int.from_bytes(size, "big")))
        number, module, name, args, kwargs, last = job
        value = getattr(importlib.import_module(module), name)(*args, **kwargs)
        file = folder / f"value_{number}_{os.environ['RANK']}"
        file.with_suffix(".part").write_bytes(pickle.dumps(value))
        file.with_suffix(".part").rename(file)
        if last:
            return
        if not number:  # what has been imported stays: looking through it for garbage takes longer than a small run
            gc.collect()
            gc.freeze()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # where a test module is called what pytest calls it
    _work(Path(sys.argv[1]))
