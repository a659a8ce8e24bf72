"""The printed table."""

import textwrap
from collections.abc import Iterable

from benchmarks.figures import HELP, ROWS, Figures, Target
from benchmarks.workload import Task

TITLE, COLUMN, WIDTH = 27, 11, 95


def text(figures: Figures, machine: dict[str, str], *, rounds: int, stage: int) -> str:
    paragraphs = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}, {machine['system']}",
        f"CPU seconds, one thread; fp32; ZeRO stage {stage} for all on DeepSpeed; medians of {rounds} rounds",
        *(_task(task) for task in figures.tasks.values()),
        *_versions(figures),
    ]
    lines = [part for line in paragraphs for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ")] + [""]
    shown = figures.bench.contestants
    words = [one.title.split(" ", 1) for one in shown]
    for line in (0, 1):
        cells = "".join(f"{word[line] if len(word) > line else '':>{COLUMN}}" for word in words)
        lines.append(" " * TITLE + cells)
    table, formats = figures.table(), {row.title: row.format for row in ROWS} | {HELP: "{:.2f}"}
    for title, values in table.items():
        cells = [formats[title].format(values[one.name]) if one.name in values else "" for one in shown]
        lines.append(f"{title:<{TITLE}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells))
    return "\n".join([*lines, "", *target_lines(figures.targets())])


def target_lines(targets: Iterable[Target]) -> list[str]:
    """What is promised, what was reached, and whether that is enough."""
    lines = [f"{'target':<34}{'reached':>9}   wanted"]
    for target in targets:
        bound = f"{'>=' if target.at_least else '<='} {target.required:,g}"
        lines.append(f"{target.title:<34}{_number(target.reached):>9}   {bound:<9}{'' if target.met else '  MISSED'}")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _task(task: Task) -> str:
    lengths = "log-normal lengths" if task.spread else f"{task.max_length} tokens each"
    return (
        f"{task.name}: {task.model.parameters / 1e6:.1f}M parameters, {task.rows:,} chats, {lengths}, rows of "
        f"{task.max_length}, {task.steps} steps"
    )


def _versions(figures: Figures) -> list[str]:
    titles_of: dict[str, list[str]] = {}
    for one in figures.bench.contestants:
        for of_task in list(figures.bench.results.values())[:1]:
            for result in of_task.get(one.name, [])[:1]:
                versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
                titles_of.setdefault(versions, []).append(one.title)
    return [f"{', '.join(titles)}: {versions}" for versions, titles in titles_of.items()]
