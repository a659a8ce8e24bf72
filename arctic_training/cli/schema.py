"""Print the JSON Schema of recipes, for editors: what keys there are, their types, defaults and meaning.

A first line in a recipe names it for editors with the YAML language server:
# yaml-language-server: $schema=recipe.schema.json
"""

import argparse
import json
from pathlib import Path

from arctic_training.cli.output import add_output_argument, write_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``schema``."""
    text = "a file with classes of your own, which the schema has too; may be repeated"
    parser.add_argument("--code", metavar="FILE", type=Path, action="append", default=[], help=text)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints or writes the schema. Raises `InputError` for code that cannot be imported, and for a file that exists."""

    from arctic_training.config.recipe.user_code import import_file
    from arctic_training.config.schema import recipe_schema

    for file in arguments.code:
        import_file(file)
    write_output(json.dumps(recipe_schema(), indent=2) + "\n", arguments.output)
    return 0
