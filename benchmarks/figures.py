"""Figures out of results: one number a contestant and row, the checks that make them comparable, and the targets."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.run import Bench, Result
from benchmarks.workload import Task

Measure = Callable[[Task, Result], float | None]
AGREE = 1e-3
"""How far apart the losses of ours and the bare loops may be, at any step."""
SAME_END = 0.05
"""How far apart, as a share, the held-out losses of all may be."""


def tokens_per_second(task: Task, result: Result) -> float:
    return sum(result["tokens"][task.warm_up :]) / timed(task, result)


def step_ms(task: Task, result: Result) -> float:
    """The median step: a background task of the machine that falls into one step is not the trainer's."""
    after = result["after_step"][task.warm_up - 1 :]
    return 1000 * median(later - earlier for earlier, later in pairwise(after))


def timed(task: Task, result: Result) -> float:
    after = result["after_step"]
    return float(after[-1] - after[task.warm_up - 1])


def prepared_per_second(task: Task, result: Result) -> float | None:
    return task.rows / result["prepared"] if result["prepared"] else None


def fill(task: Task, result: Result) -> float:
    return 100 * float(result["fill"])


def first_step(task: Task, result: Result) -> float:
    return float(result["after_step"][0] - result["prepared"])


def peak(task: Task, result: Result) -> float:
    return float(result["peak_mb"])


@dataclass(frozen=True)
class Row:
    title: str
    task: str
    measure: Measure
    format: str = "{:,.0f}"
    bare: bool = True
    """Whether the bare loops have this figure."""


ROWS = [
    Row("tokens per CPU s", "throughput", tokens_per_second),
    Row("ms per small step", "fixed", step_ms, "{:.1f}"),
    Row("packing fill, %", "throughput", fill, "{:.1f}", bare=False),
    Row("prepared rows per CPU s", "throughput", prepared_per_second),
    Row("start to 1st update, CPU s", "fixed", first_step, "{:.2f}"),
    Row("peak memory, MB", "throughput", peak),
]
HELP = "--help, CPU s"


@dataclass(frozen=True)
class Target:
    title: str
    reached: float
    required: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.reached >= self.required if self.at_least else self.reached <= self.required


class Figures:
    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.tasks = {task.name: task for task in bench.tasks}
        self.names = [one.name for one in bench.contestants]

    def of(self, row: Row, name: str) -> list[float] | None:
        """One figure a round."""
        if not row.bare and name in ("torch", "deepspeed"):
            return None
        results = self.bench.results.get(row.task, {}).get(name, [])
        values = [row.measure(self.tasks[row.task], result) for result in results]
        return [value for value in values if value is not None] or None

    def table(self) -> dict[str, dict[str, float]]:
        """The median over the rounds of every row and contestant."""
        columns = {
            row.title: {name: median(values) for name in self.names if (values := self.of(row, name))} for row in ROWS
        }
        columns = {title: values for title, values in columns.items() if values}
        return columns | {HELP: {name: median(values) for name, values in self.bench.helps.items()}}

    def targets(self) -> list[Target]:
        """Ratios of ours to another of the same run: they hold on whatever machine it runs.

        Each is the median of the rounds' own ratios, since what slows one slows its neighbour too.
        """
        tokens, step, _, prepared, first, _ = ROWS
        targets = [
            self._ratio("tokens / bare DeepSpeed", tokens, "deepspeed", 0.97),
            self._ratio("tokens / bare torch", tokens, "torch", 0.92),
            self._ratio("tokens / Arctic 0.8.0 packed", tokens, "arctic_0_8", 2.2),
            self._ratio("tokens / TRL packed", tokens, "trl_packed", 2.7),
            self._ratio("small step / bare DeepSpeed", step, "deepspeed", 1.1, at_least=False),
            self._ratio("prepared rows / TRL", prepared, "trl", 2.0),
            self._ratio("prepared rows / datasets.map", prepared, "torch", 0.9),
            self._ratio("1st update / bare DeepSpeed", first, "deepspeed", 1.2, at_least=False),
            self._target(
                "--help / TRL", self.bench.helps.get("ours"), self.bench.helps.get("trl"), 1.0, at_least=False
            ),
        ]
        return [target for target in targets if target is not None]

    def _ratio(self, title: str, row: Row, other: str, required: float, *, at_least: bool = True) -> Target | None:
        return self._target(title, self.of(row, "ours"), self.of(row, other), required, at_least=at_least)

    def _target(
        self, title: str, ours: list[float] | None, theirs: list[float] | None, required: float, *, at_least: bool
    ) -> Target | None:
        if not ours or not theirs:
            return None
        return Target(title, median(a / b for a, b in zip(ours, theirs, strict=True)), required, at_least)


def complaints(task: Task, results: dict[str, Result]) -> list[str]:
    """Why the results of one round of one task cannot be compared; none when they can."""
    messages = []
    ours = results["ours"]["losses"]
    for name in ("torch", "deepspeed"):
        if name not in results:
            continue
        bare = results[name]["losses"]
        apart = [abs(a - b) for a, b in zip(ours, bare, strict=True)]
        if not max(apart) <= AGREE:
            at = next(i for i, gap in enumerate(apart) if not gap <= AGREE)
            messages.append(
                f"{task.name}: at step {at + 1} the loss is {ours[at]:.6f} in ours and {bare[at]:.6f} in bare {name}"
            )
    least = min(result["held_out"] for result in results.values())
    for name, result in results.items():
        if not result["held_out"] <= least * (1 + SAME_END):
            messages.append(
                f"{task.name}: {name} ends at a held-out loss of {result['held_out']:.3f}, the best at {least:.3f}"
            )
        if result["mislabelled"]:
            messages.append(
                f"{task.name}: {name} has {result['mislabelled']} labels that are not the assistant's words"
            )
        if len(result["after_step"]) != task.steps:
            messages.append(f"{task.name}: {name} took {len(result['after_step'])} steps, not {task.steps}")
    return messages


def as_json(figures: Figures, machine: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": machine,
        "table": figures.table(),
        "targets": [
            {"title": one.title, "reached": one.reached, "wanted": one.required, "met": one.met}
            for one in figures.targets()
        ],
        "rounds": {
            task: {name: [_short(result) for result in results] for name, results in of_task.items()}
            for task, of_task in figures.bench.results.items()
        },
    }


def _short(result: Result) -> Result:
    return {name: value for name, value in result.items() if name not in ("losses", "tokens")}
