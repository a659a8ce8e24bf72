"""Starts the command on a recipe as a person does, finds its processes, and leaves none behind."""

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

import yaml

from tests.processes import HANG, ROOT


class Run:
    """One start of the command in ``folder``. What it writes goes to files, which no full pipe can hold up."""

    def __init__(self, folder: Path, recipe: dict[str, Any], *words: str, **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        told = {**clean, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
        with open(folder / "stderr.txt", "wb") as err, open(folder / "stdout.txt", "wb") as out:
            command = [sys.executable, "-m", "arctic_training", "recipe.yaml", *words]
            self.process = subprocess.Popen(
                command, cwd=folder, env=told, stdout=out, stderr=err, start_new_session=True, preexec_fn=_hears_ctrl_c
            )
        self.seen: set[int] = set()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text(errors="replace")

    def records(self) -> list[dict[str, Any]]:
        path = self.folder / "runs" / "recipe" / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def reach(self, update: int) -> None:
        """Wait until an update is told."""

        def there() -> bool:
            assert self.process.poll() is None, self.stderr
            return any(record["step"] >= update for record in self.records())

        wait_for(there, lambda: self.stderr)
        self.family()

    def family(self) -> list[int]:
        """The processes that are alive of all that this start was seen to have made."""
        self.seen |= set(descendants(self.process.pid)) | {self.process.pid}
        return [pid for pid in self.seen if alive(pid)]

    def rank(self, number: int) -> int:
        """The process of a rank, by its environment."""
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                said = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if (
                    f"RANK={number}".encode() in said
                    and Path(f"/proc/{pid}/cmdline").read_bytes().find(b"launch.worker") > 0
                ):
                    return pid
        raise AssertionError(f"there is no rank {number}")

    def end(self) -> int:
        """Wait for the end; the exit code. No process may stay behind."""
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


def _hears_ctrl_c() -> None:
    """As at a terminal: what a shell starts in the background is deaf to it, tests that it runs there included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def shared_memory(pids: Iterable[int | str]) -> list[str]:
    """Returns the files that these processes left in memory: whoever makes one there puts its number into the name."""
    numbers = {str(pid) for pid in pids}
    return [name for name in os.listdir("/dev/shm") if numbers & set(re.findall(r"\d+", name))]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], told: Callable[[], str] = lambda: "") -> None:
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {told()}"
        time.sleep(0.05)
