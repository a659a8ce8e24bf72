"""Compares runs in a table: steps, last loss, best evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.display.format import table_lines
from arctic_training.tracker.records import Record


class Result(NamedTuple):
    """Result of a run."""

    steps: int
    loss: float
    """That of the last record; NaN where there is none."""
    best: float
    """The best evaluation; NaN where there is none."""


def metric_of(config: TrainerConfig, records: Sequence[Record]) -> tuple[str, str]:
    """Returns the metric by which runs of ``config`` are compared, and whether ``min`` or ``max`` is best.

    It is the one that the recipe keeps checkpoints by, else the loss on the first evaluation set; empty where
    ``records`` have none.
    """
    for section in config.checkpoint:
        if section.best_metric is not None:
            return section.best_metric, section.best_mode
    return next((key for record in records for key in record if key.startswith("loss/")), ""), "min"


def result_of(records: Sequence[Record], metric: str, mode: str) -> Result:
    """Returns what the ``records`` of a run say of it."""
    losses = [record["loss"] for record in records if "loss" in record]
    values = [record[metric] for record in records if metric in record]
    best = (max if mode == "max" else min)(values, default=math.nan)
    return Result(max((int(one["step"]) for one in records), default=0), losses[-1] if losses else math.nan, best)


def write_table(results: Mapping[str, Result], states: Mapping[str, str], metric: str, mode: str) -> str:
    """Returns a line for each run by name, the best first: by its best evaluation, or by its loss without any."""

    def order(name: str) -> float:
        value = results[name].best if metric else results[name].loss
        return math.inf if math.isnan(value) else -value if mode == "max" else value

    lines = [["run", "steps", "last loss", f"best {metric}" if metric else "", ""]]
    for name in sorted(results, key=order):
        one = results[name]
        lines.append([name, str(one.steps), _shown(one.loss), _shown(one.best), states[name]])
    return "\n".join(table_lines(lines, left=range(5))) + "\n"


def _shown(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
