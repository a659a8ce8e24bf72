"""Which checkpoints of a folder stay: the newest, every so many, the best; and always a whole one."""

import math
from collections.abc import Iterable
from pathlib import Path

from arctic_training.checkpoint import folder as disk

BEST = "best"


def prune(
    root: Path, keep: int, *, every: int = 0, protected: Iterable[int] = (), max_step: int | None = None
) -> list[int]:
    """Remove the whole checkpoints but the ``keep`` newest of them (0: all), the multiples of ``every``, and those that
    ``protected`` names; returns what was removed.

    One that is not whole counts for nothing, and is left for a person to look at; so is one of a step after
    ``max_step``, which the run under way has yet to come to: it is another run's.
    """
    there = whole(root, max_step)
    kept = {*there[-keep:], *protected, *(step for step in there if every and step % every == 0)}
    removed = [step for step in there if keep and step not in kept]
    for step in removed:
        disk.remove(root, step)
    return removed


def best(root: Path, metric: str, mode: str, count: int, *, max_step: int | None = None) -> list[int]:
    """The steps of the ``count`` checkpoints with the best value of ``metric``, the best first; of equals the first.

    The values are read from the manifests, so that it does not matter how many starts of the run have written them.
    """
    if not count:
        return []
    sign = 1 if mode == "min" else -1
    manifests = {step: disk.read_manifest(disk.step_folder(root, step)) for step in whole(root, max_step)}
    told = {step: manifest.get("values", {}).get(metric) for step, manifest in manifests.items()}
    known = {step: sign * value for step, value in told.items() if value is not None and not math.isnan(value)}
    return sorted(known, key=lambda step: (known[step], step))[:count]


def name_best(root: Path, steps: list[int]) -> None:
    """Let the file ``best`` name the first of ``steps``. Raises OSError."""
    if steps:
        disk.atomic_write(root / BEST, disk.step_folder(root, steps[0]).name + "\n")


def whole(root: Path, max_step: int | None = None) -> list[int]:
    """The steps whose files are all there in their sizes, in the order of their numbers; none after ``max_step``."""
    steps = [step for step in disk.list_steps(root) if max_step is None or step <= max_step]
    return [step for step in steps if disk.verify(disk.step_folder(root, step), sums=False) is None]
