"""Runs of recipes in forked processes, which can be killed one by one or all together."""

import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.forkserver import fork, kill
from tests.processes import HANG, environment, free_port


class Run:
    """``world`` processes that train one recipe. Entering starts them; leaving kills what is left."""

    def __init__(self, words: Sequence[str], log: Path, world: int = 1) -> None:
        self.words, self.log, self.world = list(words), log, world
        self.processes: list[ForkServerProcess] = []

    def __enter__(self) -> "Run":
        port = free_port()
        for rank in range(self.world):
            own = environment(rank, self.world, port)
            self.processes.append(fork(_train, (self.words,), own, f"{self.log}.{rank}"))
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends all processes with SIGKILL, and what they started."""
        for one in self.processes:
            kill(one)

    def wait(self, timeout: float = HANG) -> bool:
        """Returns whether all have ended within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        for one in self.processes:
            one.join(max(0.0, end - time.monotonic()))
        return all(one.exitcode is not None for one in self.processes)

    @property
    def codes(self) -> list[int | None]:
        return [one.exitcode for one in self.processes]

    def output(self) -> str:
        """What they printed."""
        return "\n".join(Path(f"{self.log}.{rank}").read_text(errors="replace") for rank in range(self.world))


def _train(words: list[str]) -> int:
    from arctic_training.launch.worker import main

    return main(words)
