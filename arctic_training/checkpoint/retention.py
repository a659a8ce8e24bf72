"""Chooses the checkpoints that a folder keeps: the newest, multiples of a step, the best; always a complete one."""

import math
from collections.abc import Iterable
from pathlib import Path

from arctic_training.checkpoint import folder as disk


def prune(
    root: Path, keep: int, *, every: int = 0, protected: Iterable[int] = (), max_step: int | None = None
) -> list[int]:
    """Removes complete checkpoints and returns their steps.

    Kept are the ``keep`` newest (0: all), the multiples of ``every``, and those of the steps ``protected``. An
    incomplete one is ignored, and left for a person to look at; so is one of a step after ``max_step``, which is of
    another run.
    """
    steps = complete_steps(root, max_step)
    kept = {*steps[-keep:], *protected, *(step for step in steps if every and step % every == 0)}
    removed = [step for step in steps if keep and step not in kept]
    for step in removed:
        disk.remove(root, step)
    return removed


def best(root: Path, metric: str, mode: str, count: int, *, max_step: int | None = None) -> list[int]:
    """Returns the steps of the ``count`` checkpoints with the best value of ``metric``, best and earliest first.

    The values are read from the manifests, so they may have been written by several starts of the run.
    """
    if not count:
        return []
    sign = 1 if mode == "min" else -1
    manifests = {step: disk.read_manifest(disk.step_folder(root, step)) for step in complete_steps(root, max_step)}
    values = {step: manifest.get("values", {}).get(metric) for step, manifest in manifests.items()}
    known = {step: sign * value for step, value in values.items() if value is not None and not math.isnan(value)}
    return sorted(known, key=lambda step: (known[step], step))[:count]


def name_best(root: Path, steps: list[int]) -> None:
    """Has the file ``best`` name the first of ``steps``. Raises OSError."""
    if steps:
        disk.atomic_write(root / disk.BEST, disk.step_folder(root, steps[0]).name + "\n")


def complete_steps(root: Path, max_step: int | None = None) -> list[int]:
    """Returns in ascending order the steps up to ``max_step`` whose files are all present in their sizes."""
    steps = [step for step in disk.list_steps(root) if max_step is None or step <= max_step]
    return [step for step in steps if disk.verify(disk.step_folder(root, step), hashes=False) is None]
