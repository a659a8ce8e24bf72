"""Write the problems and answers of a recipe's generators to files.

Each source of type generator gives a file of its split: train.jsonl, eval.jsonl.
No problem is in both. The bytes do not depend on the number of processes.
Statistics are printed, and written beside them. Transforms are not applied.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arctic_training.cli.commands import add_recipe_arguments
from arctic_training.errors.types import InputError
from arctic_training.launch.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_recipe_arguments(parser)
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the files, which must not exist")
    formats = "JSON lines of problem and answer, or text lines `problem # answer` (default: jsonl)"
    add("--format", choices=["jsonl", "txt"], default="jsonl", help=formats)
    processes = "processes that generate (default: one for each core)"
    add("--processes", type=positive, default=len(os.sched_getaffinity(0)), metavar="N", help=processes)


def run(arguments: argparse.Namespace) -> int:
    """Writes the files and prints their statistics. Raises `InputError` for a recipe without a generator."""
    from arctic_training.cli.recipe import read_config
    from arctic_training.config.get_config import place_errors
    from arctic_training.data.factories.config import evaluation_names
    from arctic_training.data.preparation.instance_files import write_instances
    from arctic_training.data.sources.generator import GeneratorSource, GeneratorSourceConfig
    from arctic_training.registry import numbered

    config = read_config(arguments)
    training, evaluation = (getattr(config.data, key, []) for key in ("sources", "eval_sources"))
    names = numbered([*("train" for _ in training), *evaluation_names(evaluation)])
    splits = ["train"] * len(training) + ["eval"] * len(evaluation)
    sets = {
        name: (section.split or split, GeneratorSource(None, section))
        for name, split, section in zip(names, splits, [*training, *evaluation], strict=True)
        if isinstance(section, GeneratorSourceConfig)
    }
    with place_errors(config):
        if not sets:
            raise InputError("data.sources: none is of type generator, so that there is nothing to generate")
        written = write_instances(sets, arguments.output, file_format=arguments.format, processes=arguments.processes)
    for name, statistics in written.items():
        print("\n".join(_lines(f"{name}.{arguments.format}", statistics)))
    print(f"written to {arguments.output}")
    return 0


def _lines(name: str, statistics: Mapping[str, Any]) -> list[str]:
    """Returns the statistics of a file as lines of text."""
    counts = "{instances:,} of {generated:,} generated; repeated {repeated:,}, of other splits {of_other_splits:,}"
    lines = [f"{name}: {counts.format_map(statistics)}", f"  different answers: {statistics['different_answers']:,}"]
    moments = {key: one for key, one in statistics.items() if isinstance(one, dict) and "mean" in one}
    width = max(map(len, moments))
    lines += [
        f"  {key:{width}}  mean {one['mean']:.2f}, {one['min']:g} to {one['max']:g}" for key, one in moments.items()
    ]
    return lines
