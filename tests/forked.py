"""Runs of recipes in processes of their own that need not import anything: they are forked from one that has.

Each is a session of its own, so that `Run.kill` ends what it started, too, as the end of a machine would.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from arctic_training.data.workers import own_folder
from tests.processes import HANG, ROOT, environment, free_port

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.imported"])


class Run:
    """``world`` processes that train one recipe. Entering starts them; leaving kills what is left."""

    def __init__(self, words: Sequence[str], log: Path, world: int = 1) -> None:
        self.words, self.log, self.world = list(words), log, world
        self.processes: list[ForkServerProcess] = []

    def __enter__(self) -> "Run":
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        port = free_port()
        for rank in range(self.world):
            told = environment(rank, self.world, port)
            one = _FORKS.Process(target=_train, args=(self.words, told, f"{self.log}.{rank}"))
            with own_folder():  # for the socket of the server that forks, whatever TMPDIR is
                one.start()
            self.processes.append(one)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self, rank: int | None = None) -> None:
        """SIGKILL to all processes, or to one of them, and to what they started."""
        for one in self.processes if rank is None else [self.processes[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid or 0, signal.SIGKILL)
            one.kill()  # for it may not have come to being a session of its own
            one.join()

    def wait(self, timeout: float = HANG) -> bool:
        """Whether all have ended within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        for one in self.processes:
            one.join(max(0.0, end - time.monotonic()))
        return all(one.exitcode is not None for one in self.processes)

    @property
    def codes(self) -> list[int | None]:
        return [one.exitcode for one in self.processes]

    def told(self) -> str:
        """What they printed."""
        return "\n".join(Path(f"{self.log}.{rank}").read_text(errors="replace") for rank in range(self.world))


def _train(words: list[str], told: dict[str, str], log: str) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as it is in a process that nobody forked
    os.environ.clear()
    os.environ.update(told)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from arctic_training.entrypoint import main

    sys.exit(main(words))
