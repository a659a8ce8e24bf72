"""Writes the report of runs: one HTML page with everything in it, which requests nothing."""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from operator import itemgetter
from pathlib import Path
from typing import Any

from arctic_training.errors.types import InputError
from arctic_training.report.differences import differences, flatten
from arctic_training.report.run_folder import Point, RunFolder, read_rows, read_run, run_names

_MAX_POINTS = 1_500
"""Points of a curve on the page."""
_MAX_STEPS = 6
"""Steps whose samples are on the page, the first and the last among them."""
_MAX_ROWS = 200
"""Samples of a step that are on the page."""
_MAX_IMAGE = 2_000_000
"""Bytes of the largest picture on the page."""
_GENERATOR = '<meta name="generator" content="arctic_training report">'
_FIRST = ("loss", "perplexity", "token_accuracy", "accuracy", "reward", "exact_match")
_LAST = ("lr", "grad_norm", "tokens_per_second", "targets_per_second", "mfu", "seconds", "data_seconds")
"""The first and the last curves; others stand between them, and memory at the end."""


def write_report(paths: Sequence[Path], output: Path) -> None:
    """Writes the page of the runs in folders ``paths`` to ``output``, complete or not at all.

    Raises `InputError` for a folder that is no run, and for an ``output`` that exists and is no report.
    """
    runs = [read_run(path) for path in paths]
    if output.exists() and not (output.is_file() and _GENERATOR in _beginning(output)):
        raise InputError(f"{output} exists and is no report; give another file with -o")
    page = render_page(runs)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        unfinished.write_text(page, encoding="utf-8")
        os.replace(unfinished, output)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error


def render_page(runs: Sequence[RunFolder]) -> str:
    """Returns the page of ``runs``. Everything that a run has written is escaped, and no other script can run."""
    from jinja2 import Environment

    names = run_names([run.path for run in runs])
    files = resources.files("arctic_training.report")
    script = (files / "page.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": True}
    recipes = {name: flatten(run.recipe) for name, run in zip(names, runs, strict=True)}
    environments = {name: flatten(run.environment) for name, run in zip(names, runs, strict=True)}
    return environment.from_string((files / "page.html").read_text(encoding="utf-8")).render(
        generator=_GENERATOR,
        style=(files / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        names=names,
        runs=list(zip(names, runs, strict=True)),
        recipe_differences=differences(recipes),
        environment_differences=differences(environments),
        images=[image for name, run in zip(names, runs, strict=True) for image in _images(name, run)],
        data={
            "runs": names,
            "charts": _charts(names, runs),
            "samples": [one for name, run in zip(names, runs, strict=True) for one in _samples(name, run)],
        },
    )


def _charts(names: Sequence[str], runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Returns the charts: metrics that differ in what follows their first ``/`` share one."""
    charts: dict[str, list[dict[str, Any]]] = {}
    for number, run in enumerate(runs):
        start = min((points[0][1] for points in run.curves.values()), default=0.0)
        for metric, points in sorted(run.curves.items()):
            if metric == "epoch":
                continue
            kept = thin_out(points)
            charts.setdefault(metric.partition("/")[0], []).append(
                {
                    "run": number,
                    "metric": metric,
                    "steps": [step for step, _, _ in kept],
                    "hours": [round((time - start) / 3600, 5) for _, time, _ in kept],
                    "values": [value for _, _, value in kept],
                }
            )
    return [{"title": title, "series": charts[title]} for title in sorted(charts, key=_rank)]


def _rank(title: str) -> tuple[int, int, str]:
    if title in _FIRST:
        return 0, _FIRST.index(title), title
    if title in _LAST:
        return 2, _LAST.index(title), title
    return (3 if "memory" in title else 1), 0, title


def thin_out(points: Sequence[Point]) -> list[Point]:
    """Returns at most some 1,500 of the points: of each part of a longer curve its lowest and its highest one."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    parts = _MAX_POINTS // 2
    kept: list[Point] = []
    for part in range(parts):
        some = points[len(points) * part // parts : len(points) * (part + 1) // parts]
        finite = [point for point in some if point[2] is not None]
        value = itemgetter(2)
        kept += sorted({min(finite, key=value), max(finite, key=value)} if finite else {some[0]})
    return kept


def _samples(name: str, run: RunFolder) -> list[dict[str, Any]]:
    """Returns the texts that a run has generated, by their folder and step."""
    sets = []
    for folder, files in run.texts.items():
        steps = []
        for step in _spread(sorted(files)):
            rows, unread = read_rows(files[step])
            kept = [_jsonable(row) for row in rows[:_MAX_ROWS]]
            steps.append({"step": step, "count": len(rows), "unread": unread, "rows": kept})
        sets.append({"run": name, "set": folder, "steps": steps})
    return sets


def _jsonable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row without numbers that JSON does not have."""
    return {key: None if isinstance(value, float) and value - value != 0 else value for key, value in row.items()}


def _images(name: str, run: RunFolder) -> list[dict[str, Any]]:
    """Returns the pictures of a run, in the page themselves."""
    images = []
    for folder, files in run.images.items():
        for step in _spread(sorted(files)):
            if files[step].stat().st_size <= _MAX_IMAGE:
                encoded = base64.b64encode(files[step].read_bytes()).decode()
                images.append(
                    {"caption": f"{name}, {folder}, step {step}", "source": f"data:image/png;base64,{encoded}"}
                )
    return images


def _spread(steps: Sequence[int]) -> list[int]:
    """Returns a few of the steps, evenly, with the first and the last one."""
    if len(steps) <= _MAX_STEPS:
        return list(steps)
    return [steps[round(n * (len(steps) - 1) / (_MAX_STEPS - 1))] for n in range(_MAX_STEPS)]


def _beginning(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(1_000)
