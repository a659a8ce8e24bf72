"""Measures a saved model by a recipe, without training.

The loss on the recipe's evaluation sets and what its evaluators measure are printed, and written to evaluation.json.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from arctic_training.cli.commands import add_recipe_arguments
from arctic_training.cli.generation_options import clean_stdout
from arctic_training.display.format import table_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add = parser.add_argument
    which = "a run folder (its newest checkpoint), a checkpoint, a folder of transformers, or an adapter"
    add("checkpoint", metavar="CHECKPOINT", help=which)
    add_recipe_arguments(parser)
    add("--best", action="store_true", help="of a run folder: the best checkpoint, not the newest")
    add("--ema", action="store_true", help="of a checkpoint of type deepspeed: the averaged weights")
    folder = "folder of the results (default: evaluations/<recipe>/<checkpoint> beside the recipe)"
    add("-o", "--output", type=Path, metavar="DIR", help=folder)


def run(arguments: argparse.Namespace) -> int:
    """Evaluates, and prints a table of the metrics. Raises `InputError`."""
    with clean_stdout():
        from arctic_training.checkpoint.saved_model import find_saved_model
        from arctic_training.config.get_config import get_config, place_errors
        from arctic_training.deployment.evaluate import RESULT, evaluate
        from arctic_training.distributed import process_group

    config = get_config(arguments.recipe, arguments.overrides)
    saved = find_saved_model(arguments.checkpoint, best=arguments.best)
    name = Path(arguments.recipe).stem
    folder = arguments.output or config.recipe_dir / "evaluations" / name / Path(saved.name).name
    with place_errors(config), clean_stdout():
        values = evaluate(config, saved, folder, averaged=arguments.ema)
    if process_group.is_main():
        print(table(values))
        print(f"written to {folder / RESULT}")
    return 0


def table(values: Mapping[str, float]) -> str:
    """Returns the metrics as a table: a row for each metric, a column for each evaluation set."""
    cells = {tuple(name.rsplit("/", 1)) if "/" in name else (name, ""): value for name, value in values.items()}
    sets = list(dict.fromkeys(name[1] for name in cells))
    metrics = list(dict.fromkeys(name[0] for name in cells))
    rows = [["", *sets]]
    rows += [[one, *(f"{cells[one, each]:.4f}" if (one, each) in cells else "-" for each in sets)] for one in metrics]
    return "\n".join(table_lines(rows, left=[0]))
