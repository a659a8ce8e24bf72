"""Starts the command on a recipe as a user does, finds its processes, and leaves none behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.processes import HANG, ROOT


class Run:
    """One start of the command in ``folder``. What it writes goes to files, which no full pipe can hold up."""

    def __init__(self, folder: Path, recipe: dict[str, Any], *words: str, **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        variables = {**clean, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
        with open(folder / "stderr.txt", "wb") as err, open(folder / "stdout.txt", "wb") as out:
            command = [sys.executable, "-m", "arctic_training", "recipe.yaml", *words]
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=variables,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_handle_ctrl_c,
            )
        self.seen: set[int] = set()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text(errors="replace")

    def records(self) -> list[dict[str, Any]]:
        path = self.folder / "runs" / "recipe" / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def reach(self, step: int) -> None:
        """Waits until the metrics of ``step`` are written."""

        def reached() -> bool:
            assert self.process.poll() is None, self.stderr
            return any(record["step"] >= step for record in self.records())

        wait_for(reached, lambda: self.stderr)
        self.family()

    def family(self) -> list[int]:
        """Returns the processes that are alive of all that this start was seen to have started."""
        self.seen |= set(descendants(self.process.pid)) | {self.process.pid}
        return [pid for pid in self.seen if alive(pid)]

    def rank(self, number: int) -> int:
        """Returns the process of a rank, by its environment."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RANK") == str(number) and "launch.worker" in " ".join(process.cmdline()):
                    return process.pid
        raise AssertionError(f"there is no rank {number}")

    def end(self) -> int:
        """Waits for the end and returns the exit code. No process may stay behind."""
        code = self.process.wait(HANG)
        wait_for(lambda: not self.family(), lambda: f"left behind: {self.family()}")
        return code

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: Any) -> None:
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _handle_ctrl_c() -> None:
    """Restores Ctrl-C: a shell has what it starts in the background ignore it, tests included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def descendants(pid: int) -> list[int]:
    """Returns the processes that ``pid`` and its children have started, and that are not collected yet."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def shared_memory(pids: Iterable[int | str]) -> list[str]:
    """Returns the files that these processes left in memory: whoever makes one there puts its number into the name."""
    numbers = {str(pid) for pid in pids}
    return [name for name in os.listdir("/dev/shm") if numbers & set(re.findall(r"\d+", name))]


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and is not collected yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], Any], details: Callable[[], str] = lambda: "") -> None:
    """Waits until ``condition`` holds; fails with ``details`` when it does not in `HANG` seconds."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {details()}"
        time.sleep(0.05)
