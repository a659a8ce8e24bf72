"""Write a commented recipe to start from.

The trainer is one of `arctic_training list trainer`, sft by default. Words KEY.PATH=VALUE change the values that are
written; the recipe that is written validates.
"""

import argparse
from collections.abc import Mapping
from importlib import resources
from typing import cast

from arctic_training.cli.output import add_output_argument, write_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``init``."""
    parser.add_argument("trainer", metavar="TRAINER", nargs="?", default="sft", help="the trainer (default: sft)")
    parser.add_argument("overrides", metavar="KEY.PATH=VALUE", nargs="*", help="another value: model.name_or_path=mine")
    parser.add_argument("--all", action="store_true", help="also the keys that all trainers have, as comments")
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints or writes the recipe. Raises `InputError` for an unknown trainer, and for a file that exists."""
    from arctic_training.config.recipe.node import to_python
    from arctic_training.config.recipe.yaml_reader import read_yaml
    from arctic_training.config.starter import write_starter

    file = resources.files("arctic_training.cli") / "templates" / "starters.yaml"
    starters = cast(Mapping[str, Mapping[str, object]], to_python(read_yaml(file.read_text("utf-8"), file.name)))
    text = write_starter(arguments.trainer, starters, arguments.overrides, every_key=arguments.all)
    write_output(text, arguments.output)
    return 0


def words() -> list[str]:
    """Returns the names of the trainers, for completion."""

    from arctic_training.registry import names

    return names("trainer")
