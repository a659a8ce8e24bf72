"""Starts every contestant in a process of its own, in turn, round after round, and gathers what they write."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestant import HERE, ROOT, Contestant
from benchmarks.workload import Task

Result = dict[str, Any]
Complaints = Callable[[Task, dict[str, Result]], list[str]]


@dataclass
class Bench:
    """The results of a run: ``results[task][contestant]`` and ``helps[contestant]``, one entry a round."""

    tasks: list[Task]
    contestants: list[Contestant]
    work: Path
    stage: int
    patience: float = 3600.0
    """Seconds that one contestant may take."""
    rounds: int = 0
    """Rounds that were counted."""
    results: dict[str, dict[str, list[Result]]] = field(default_factory=dict)
    helps: dict[str, list[float]] = field(default_factory=dict)

    def make_corpora(self) -> None:
        for task in self.tasks:
            folder = self.folder(task)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "task.json").write_text(json.dumps(task.as_dict() | {"llama": task.model.llama(task.max_length)}))
        ours = self.contestants[0]
        folders = [str(self.folder(task)) for task in self.tasks]
        command = [str(ours.python), "contestants/corpus.py", *folders]
        subprocess.run(command, cwd=HERE, env=ours.environment(), check=True)

    def folder(self, task: Task) -> Path:
        return self.work / task.name

    def round(self, number: int, complaints: Complaints, *, first: bool) -> list[str]:
        """All contestants once; what makes their results incomparable.

        Round 0 is not counted: it warms the disk. The ``first`` one writes the batches of the bare loops.
        """
        problems: list[str] = []
        figures: dict[str, dict[str, Result]] = {task.name: {} for task in self.tasks}
        for task in self.tasks:
            for one in self.contestants:
                result = self.train(task, one, dump=first and one.name == "ours")
                note(f"round {number} {task.name:<11}{one.title:<15}{summary(task, result)}")
                figures[task.name][one.name] = result
            problems += complaints(task, figures[task.name])
        helps = {one.name: self.help(one) for one in self.contestants if one.help_command}
        if number:
            self.rounds += 1
            for name, seconds in helps.items():
                self.helps.setdefault(name, []).append(seconds)
            for of, results in figures.items():
                for name, result in results.items():
                    self.results.setdefault(of, {}).setdefault(name, []).append(result)
        return problems

    def train(self, task: Task, one: Contestant, *, dump: bool) -> Result:
        folder, run_dir = self.folder(task), self.work / "run"
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True)
        result = run_dir / "result.json"
        corpus = json.loads((folder / "corpus.json").read_text())
        spec = {
            "task": json.loads((folder / "task.json").read_text()) | corpus,
            "folder": str(folder),
            "result": str(result),
            "batches": str(folder / "batches.pt"),
            "run_dir": str(run_dir),
            "cache_dir": str(run_dir / "cache"),
            "port": free_port(),
            "stage": self.stage,
            "dump": dump,
        }
        (run_dir / "spec.json").write_text(json.dumps(spec | one.spec))
        log = self.work / f"{one.name}.log"
        with log.open("w") as stream:
            code = subprocess.run(
                [str(one.python), str(HERE / "contestants" / one.script), str(run_dir / "spec.json")],
                cwd=run_dir,
                env=one.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=self.patience,
            ).returncode
        if code or not result.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise SystemExit(f"{one.title} failed on {task.name} with exit code {code}:\n{tail}")
        figures: Result = json.loads(result.read_text())
        return figures

    def help(self, one: Contestant) -> float:
        """CPU seconds of its command's --help, children counted."""
        started = subprocess.Popen(
            one.help_command,
            cwd=ROOT if one.sees_package else self.work,
            env=one.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(started.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(one.help_command)} ended with status {status}")
        started.returncode = 0
        return usage.ru_utime + usage.ru_stime


def summary(task: Task, result: Result) -> str:
    after = result["after_step"]
    step = (after[-1] - after[task.warm_up - 1]) / (len(after) - task.warm_up)
    tokens = sum(result["tokens"][task.warm_up :]) / (after[-1] - after[task.warm_up - 1])
    return f"{tokens:8.0f} tokens/s {1000 * step:8.1f} ms/step  held out {result['held_out']:.3f}"


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
