"""List the recipes that come with the package, or copy one to change it.

`recipes list` prints their names and subjects, `recipes copy NAME` writes NAME.yaml into this folder, or to DEST.
"""

import argparse
from importlib import resources
from pathlib import Path

from arctic_training.cli.output import write_output
from arctic_training.errors.types import InputError
from arctic_training.registry import suggest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``recipes``."""
    parser.add_argument("action", choices=["list", "copy"], help="what to do")
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="the recipe to copy")
    parser.add_argument("destination", metavar="DEST", nargs="?", type=Path, help="a file, or a folder that exists")


def run(arguments: argparse.Namespace) -> int:
    """Prints the list or copies a recipe. Raises `InputError` for an unknown name, and for a file that exists."""
    texts = shipped()
    if arguments.action == "list":
        width = max(map(len, texts))
        for name, text in texts.items():
            print(f"{name:{width}}  {text.partition(chr(10))[0].removeprefix('# ')}")
        return 0
    if arguments.name not in texts:
        raise InputError(f"no recipe is named {arguments.name!r}; {suggest(arguments.name, texts)}")
    destination = arguments.destination or Path()
    file = destination / f"{arguments.name}.yaml" if destination.is_dir() else destination
    write_output(texts[arguments.name], file)
    return 0


def shipped() -> dict[str, str]:
    """Returns the texts of the recipes that come with the package, by name, sorted. The first line is the subject."""
    folder = resources.files("arctic_training") / "recipes"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text("utf-8") for file in files}


def words() -> list[str]:
    """Returns the names of the recipes, for completion."""
    return list(shipped())
