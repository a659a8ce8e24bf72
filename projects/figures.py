"""`python projects/figures.py`: runs the projects, compares each figure with its bound, and writes docs/figures.md.

The file ``figures.yaml`` of a project says which recipes are run, which metric is a figure, and what it must reach.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from pydantic import BaseModel, ConfigDict

PROJECTS = Path(__file__).resolve().parent
PAGE = PROJECTS.parent / "docs" / "figures.md"
INTRODUCTION = """# Figures of the projects

`make figures` runs the recipes of all projects, compares each figure with its bound, and writes this page. A figure is
of one seed on one machine; rounding moves it a little on another one. `make figures ARGS="ring grpo"` measures some of
them anew, and `ARGS="mnist/vae"` one run of a project.
"""


class Section(BaseModel):
    """Base of the sections of ``figures.yaml``."""

    model_config = ConfigDict(extra="forbid")


class Bound(Section):
    """What a figure must reach; the keys that are set hold together."""

    at_least: float | None = None
    at_most: float | None = None
    rise: float | None = None
    """By how much the last value must be above the first."""

    def holds(self, values: list[float]) -> bool:
        """Returns whether ``values``, the metric in the order of the run, reach the bound."""
        return (
            (self.at_least is None or values[-1] >= self.at_least)
            and (self.at_most is None or values[-1] <= self.at_most)
            and (self.rise is None or values[-1] - values[0] >= self.rise)
        )

    def __str__(self) -> str:
        texts = {"at least": self.at_least, "at most": self.at_most, "a rise of": self.rise}
        return ", ".join(f"{words} {value:g}" for words, value in texts.items() if value is not None)


class Run(Section):
    """One run of a project. ``{runs}`` in an override stands for the folder of the project's runs."""

    recipe: str
    name: str = ""
    """The name of the run folder; that of the recipe by default."""
    overrides: list[str] = []
    quick: list[str] | None = []
    """More overrides for a fraction of the length; None: the run is left out then."""


class Figure(Section):
    """A metric of a run."""

    name: str
    run: str
    """The name of the run."""
    metric: str
    bound: Bound
    quick: Bound | None = None
    """The bound after a fraction of the length; None: it is not measured then."""
    references: str
    """What a trivial model reaches, and what the best possible one would."""


class Project(Section):
    """The file ``figures.yaml`` of a project."""

    title: str
    runs: list[Run]
    figures: list[Figure]


@dataclass(frozen=True)
class Measured:
    """A figure of a run that ended."""

    figure: Figure
    bound: Bound
    values: list[float]
    """The metric at each evaluation."""
    seconds: float
    """Wall time of all runs of the project up to this one."""

    @property
    def holds(self) -> bool:
        """Whether the figure reaches its bound."""
        return self.bound.holds(self.values)

    def __str__(self) -> str:
        first, last = self.values[0], self.values[-1]
        return f"{self.figure.name}: {first:.4g} -> {last:.4g} ({self.bound}){'' if self.holds else ' MISSED'}"


def names() -> list[str]:
    """Returns the names of the projects with figures."""
    return sorted(path.parent.name for path in PROJECTS.glob("*/figures.yaml"))


def read(name: str) -> Project:
    """Returns the project ``name``."""
    return Project.model_validate(yaml.safe_load((PROJECTS / name / "figures.yaml").read_text(encoding="utf-8")))


def execute(words: Sequence[str]) -> None:
    """Runs the command with the arguments ``words``. Raises `subprocess.CalledProcessError` when it fails."""
    subprocess.run([sys.executable, "-m", "arctic_training", *words], check=True, cwd=PROJECTS.parent)


def measure(
    name: str, runs: Path, *, quick: bool, only: str = "", execute: Callable[[Sequence[str]], None] = execute
) -> Iterator[Measured]:
    """Runs the project ``name`` in the folder ``runs`` and yields its figures, each when its run has ended.

    With ``only``, the name of a run, the others are not repeated; it may need what they have left in ``runs``. Each run
    is the command, which ``execute`` runs in the folder of the repository.
    """
    project, started = read(name), time.monotonic()
    for run in project.runs:
        recipe, folder = PROJECTS / name / run.recipe, runs / (run.name or Path(run.recipe).stem)
        if (quick and run.quick is None) or (only and only != folder.name):
            continue
        overrides = [one.format(runs=runs) for one in [*run.overrides, *(run.quick or [] if quick else [])]]
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        execute([str(recipe), f"output_dir={folder}", *overrides])
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        for figure in project.figures:
            bound = figure.quick if quick else figure.bound
            if figure.run == folder.name and bound is not None:
                values = [record[figure.metric] for record in records if figure.metric in record]
                yield Measured(figure, bound, values, time.monotonic() - started)


def page(measured: dict[str, list[Measured]], before: str) -> str:
    """Returns the page of all figures; those that are not ``measured`` are taken from the page ``before``."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    where = f"{commit.strip()}, {processor()}, torch {torch.__version__}"
    lines = [INTRODUCTION, "| project | figure | before | reached | bound | references | seconds | measured at |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name in names():
        project, own = read(name), {one.figure.name: one for one in measured.get(name, [])}
        start = f"| `projects/{name}`: "
        earlier = [line.split(" | ") for line in before.splitlines() if line.startswith(start)]
        kept = {cells[1]: cells[2:] for cells in earlier}
        for figure in project.figures:
            if (one := own.get(figure.name)) is not None:
                first = f"{one.values[0]:.4g}" if len(one.values) > 1 else ""
                cells = [first, f"{one.values[-1]:.4g}", str(one.bound), figure.references, f"{one.seconds:.0f}"]
                lines.append(" | ".join([start + project.title, figure.name, *cells, f"{where} |"]))
            elif figure.name in kept:
                lines.append(" | ".join([start + project.title, figure.name, *kept[figure.name]]))
    return "\n".join(lines) + "\n"


def processor() -> str:
    """Returns the name of the processor, and how many cores this process may use."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line), "unknown CPU")
    cores = len(os.sched_getaffinity(0))
    return f"{cores} {'core' if cores == 1 else 'cores'} of {name}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python projects/figures.py", description=__doc__)
    parser.add_argument("projects", nargs="*", help="names of projects, or PROJECT/RUN; all by default")
    parser.add_argument("--quick", action="store_true", help="a fraction of the length and looser bounds; no page")
    arguments = parser.parse_args()
    measured: dict[str, list[Measured]] = {}
    for which in arguments.projects or names():
        name, _, run = which.partition("/")
        for one in measure(name, PROJECTS / name / "runs", quick=arguments.quick, only=run):
            print(f"{name}: {one}", flush=True)
            measured.setdefault(name, []).append(one)
    if not arguments.quick:
        PAGE.write_text(page(measured, PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""), encoding="utf-8")
    return int(not all(one.holds for figures in measured.values() for one in figures))


if __name__ == "__main__":
    sys.exit(main())
