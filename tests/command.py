"""Starts the command on a recipe as a user does, finds its processes, and leaves none behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.processes import HANG, ROOT
from tests.warm_start import ZYGOTE, Command, rank_name


class Run:
    """One start of the command in ``folder``: forked, or as ``python -m``. What it writes goes to files, which no full
    pipe can hold up."""

    def __init__(
        self, folder: Path, recipe: dict[str, Any], *words: str, new_interpreters: bool = False, **environment: str
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        output, errors = folder / "stdout.txt", folder / "stderr.txt"
        variables = clean_environment(**environment)
        self.process: Command | subprocess.Popen[bytes]
        if new_interpreters:
            with open(output, "wb") as out, open(errors, "wb") as err:
                command = [sys.executable, "-m", "arctic_training", "recipe.yaml", *words]
                outputs: dict[str, Any] = {"stdout": out, "stderr": err}
                self.process = subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True, **outputs)
        else:
            self.process = Command(["recipe.yaml", *words], folder, variables, output, errors)
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
        """Returns the process of a rank."""
        for child in psutil.Process(self.process.pid).children():
            if child.name() == rank_name(number) or child.environ().get("RANK") == str(number):
                return child.pid
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


def clean_environment(**variables: str) -> dict[str, str]:
    """Returns the environment of a command: without what made this process a rank, and with ``variables``."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**clean, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **variables}


def execute(
    folder: Path, *words: str, new_interpreter: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command with the arguments ``words`` in ``folder`` to its end: forked, or as ``python -m``."""
    variables = clean_environment(**environment)
    if new_interpreter:
        command = [sys.executable, "-m", "arctic_training", *words]
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=HANG)
    with tempfile.TemporaryDirectory() as outputs:
        process = Command(words, folder, variables, Path(outputs, "stdout"), Path(outputs, "stderr"))
        output, errors = process.communicate(HANG)
        return subprocess.CompletedProcess(words, process.wait(), output, errors)


def descendants(pid: int) -> list[int]:
    """Returns the processes that ``pid`` and its children have started, and that are not collected yet."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child.pid for child in children if not _is_zygote(child)]


def _is_zygote(process: psutil.Process) -> bool:
    try:
        return process.name() == ZYGOTE
    except psutil.NoSuchProcess:
        return False


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
