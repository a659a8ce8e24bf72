"""Runs a function in several real processes that form one run, and cleans up whatever becomes of them."""

import contextlib
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

_BODY = """
import pickle, sys
sys.path[:0] = pickle.loads(bytes.fromhex({path!r}))
import importlib
function = getattr(importlib.import_module({module!r}), {name!r})
args, kwargs = pickle.loads(bytes.fromhex({call!r}))
value = function(*args, **kwargs)
from arctic_training import distributed
with open({out!r} + str(distributed.rank()), "wb") as file:
    pickle.dump(value, file)
"""


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


def run(function: Callable[..., Any], world: int, *args: Any, timeout: float = 120, **kwargs: Any) -> list[Any]:
    """What ``function(*args, **kwargs)`` returns in each of ``world`` processes, by rank.

    The function must be importable: a top-level one of a test module. Fails with the output of the first process that
    fails; kills all of them when ``timeout`` seconds are over.
    """
    source = Path(sys.modules[function.__module__].__file__ or "")
    path = [str(source.parent), str(ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/value_"
        body = _BODY.format(
            path=pickle.dumps(path).hex(),
            module=source.stem,
            name=function.__name__,
            call=pickle.dumps((args, kwargs)).hex(),
            out=out,
        )
        logs = [open(f"{folder}/log_{rank}", "w+b") for rank in range(world)]  # noqa: SIM115  closed below
        port = free_port()
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", body],
                env=environment(rank, world, port),
                stdout=logs[rank],
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )
            for rank in range(world)
        ]
        try:
            _wait(processes, timeout)
        finally:
            stop(processes)
            told = [Path(log.name).read_text(errors="replace") for log in logs]
            for log in logs:
                log.close()
        codes = [process.returncode for process in processes]
        if any(codes):
            report = "\n".join(f"--- rank {n}, exit {codes[n]}\n{told[n][-6000:]}" for n in range(world))
            raise AssertionError(f"{function.__name__} failed in {world} processes\n{report}")
        return [pickle.loads(Path(f"{out}{rank}").read_bytes()) for rank in range(world)]


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> None:
    """Until all have ended, one has failed, or the time is over."""
    end = time.monotonic() + timeout
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        if any(process.poll() not in (None, 0) for process in processes):
            time.sleep(1)  # let the others say what they think of it
            return
        time.sleep(0.02)
