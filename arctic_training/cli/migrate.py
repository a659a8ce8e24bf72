"""Turn a configuration of axolotl, LLaMA-Factory, TRL or torchtune into a recipe.

What could not be carried over is listed, and stands at the beginning of the recipe.
"""

import argparse
import sys
import textwrap
from pathlib import Path

from arctic_training.cli.output import add_output_argument, write_output

FORMATS = ("axolotl", "llama_factory", "torchtune", "trl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``migrate``."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the YAML file")
    parser.add_argument("--from", dest="format", choices=FORMATS, default="", help="its format (default: by its keys)")
    parser.add_argument(
        "--type", metavar="TRAINER", default="", help="the trainer of the recipe (default: by its keys)"
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints or writes the recipe. Raises `InputError` for a file that cannot be migrated."""

    from arctic_training.config.migration.migrate import migrate

    migrated = migrate(arguments.file, arguments.format, arguments.type)
    write_output(migrated.text(arguments.file.name), arguments.output)
    for title, lines in migrated.lists().items():
        print(f"{title}:", file=sys.stderr)
        for line in lines:
            text = textwrap.fill(line, 80, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
            print(text, file=sys.stderr)
    return 0
