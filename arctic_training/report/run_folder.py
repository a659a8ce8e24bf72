"""Reads the folder of a run: its metrics, recipe, environment and samples."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from arctic_training.errors.types import InputError
from arctic_training.tracker.records import METRICS, Record, read_records

_STEP = re.compile(r"(?:step|update)_(\d+)\.(jsonl|png)")
_NO_METRICS = ("step", "time")

Point = tuple[int, float, float | None]
"""The step, the time in seconds since 1970 and the value; None for one that is not finite."""


@dataclass
class RunFolder:
    """Files that a run has written, read."""

    path: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    environment_text: str
    curves: dict[str, list[Point]]
    """The points of each metric, in the order of steps."""
    unread_lines: int
    """Lines of the metrics that cannot be read, as one that was cut off by a kill."""
    texts: dict[str, dict[int, Path]] = field(default_factory=dict)
    """The files of completions by their folder and step, such as ``generations/eval``."""
    images: dict[str, dict[int, Path]] = field(default_factory=dict)
    """The pictures by their folder and step."""


def read_run(path: Path) -> RunFolder:
    """Returns what is in a run folder. Raises `InputError` for a folder that is none."""
    if not (path / "recipe.yaml").is_file():
        why = "there is no recipe.yaml in it" if path.is_dir() else "no such folder"
        raise InputError(f"{path}: {why}; expected the folder of a run, such as runs/recipe")
    recipe_text = (path / "recipe.yaml").read_text(encoding="utf-8")
    environment_text = _text(path / "environment.json")
    try:
        recipe = yaml.safe_load(recipe_text) or {}
        environment = json.loads(environment_text or "{}")
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: its recipe.yaml or environment.json cannot be read: {error}") from error
    metrics = Path(recipe.get("train_log_metrics_path") or path / METRICS)
    records, unread = read_records(metrics if metrics.is_absolute() else path / METRICS)
    run = RunFolder(path, recipe, recipe_text, environment, environment_text, read_curves(records), unread)
    for file in sorted([*path.glob("generations*/*/*"), *path.glob("samples/*/*")]):
        if named := _STEP.fullmatch(file.name):
            files = run.texts if file.suffix == ".jsonl" else run.images
            files.setdefault(str(file.parent.relative_to(path)), {})[int(named[1])] = file
    return run


def read_curves(records: Iterable[Record]) -> dict[str, list[Point]]:
    """Returns the points of each metric.

    Where a run has gone back to an earlier step, what it had logged from that step on is left out.
    """
    values: dict[str, dict[int, Point]] = {}
    last = -1
    for record in records:
        step, time = int(record["step"]), float(record.get("time", 0))
        if step < last:
            values = {name: {n: one for n, one in points.items() if n < step} for name, points in values.items()}
        last = step
        for name, value in record.items():
            if name not in _NO_METRICS:
                values.setdefault(name, {})[step] = (step, time, float(value) if math.isfinite(value) else None)
    return {name: list(points.values()) for name, points in values.items() if points}


def read_rows(file: Path) -> tuple[list[Mapping[str, Any]], int]:
    """Returns the rows of a file of JSON lines, and the number of lines that cannot be read."""
    lines = [line for line in _text(file).split("\n") if line.strip()]
    rows: list[Mapping[str, Any]] = []
    for line in lines:
        with suppress(ValueError):
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) else []
    return rows, len(lines) - len(rows)


def run_names(paths: list[Path]) -> list[str]:
    """Returns a short name for each run: the parts of its path that tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    if len(parts) == 1:
        return [parts[0][-1]]
    common = 0
    while all(len(one) > common + 1 and one[common] == parts[0][common] for one in parts):
        common += 1
    return ["/".join(one[common:]) for one in parts]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
