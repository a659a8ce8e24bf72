"""The commands beside training: each is a module with two functions, which is imported when the command is called.

``add_arguments(parser)`` adds its arguments to an `argparse.ArgumentParser`; ``run(arguments)`` does the work and
returns the exit code. It raises `InputError` for what cannot be used.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, NoReturn

from arctic_training.errors.types import InputError


class Command(NamedTuple):
    """A command: the module that runs it, and its line in the help."""

    module: str
    summary: str


COMMANDS = {
    "init": Command("init", "write a commented recipe to start from"),
    "recipes": Command("recipes", "list the recipes of the package, or copy one"),
    "migrate": Command("migrate", "turn another trainer's configuration into a recipe"),
    "preview": Command("preview", "show samples as they are trained on, and statistics"),
    "plan": Command("plan", "tell what a run takes, and what would make it fit"),
    "chat": Command("chat", "talk with a saved model"),
    "generate": Command("generate", "complete prompts with a saved model"),
    "generate-data": Command("generate_data", "write the problems of a recipe's generators to files"),
    "evaluate": Command("evaluate", "measure a saved model by a recipe, without training"),
    "export": Command("export", "write a saved model for use elsewhere; merge its adapter"),
    "report": Command("report", "write a page about runs: curves, samples, differences"),
    "list": Command("list_components", "list the classes that a recipe can name"),
    "new": Command("new_trainer", "write a trainer of your own, its recipe and tests"),
    "schema": Command("schema", "print the JSON Schema of recipes, for editors"),
    "completion": Command("completion", "print a script by which a shell completes words"),
    "doctor": Command("doctor", "tell what this machine has, and what is missing for what"),
}


def run_command(name: str, words: Sequence[str]) -> int:
    """Runs the command ``name`` with the arguments ``words``, and returns its exit code."""
    try:
        with without_warnings():
            return int(_module(name).run(parse_command(name, words)))
    except SystemExit as end:  # of --help, which argparse prints
        sys.stdout.flush()
        return int(end.code or 0)


def parse_command(name: str, words: Sequence[str]) -> argparse.Namespace:
    """Returns the arguments ``words`` of the command ``name``. Raises `InputError` for those that cannot be used."""
    module = _module(name)
    parser = _Parser(
        prog=f"arctic_training {name}",
        description="\n".join(textwrap.fill(line, 80) for line in (module.__doc__ or "").splitlines()),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=80),
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser.parse_intermixed_args(words)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps DeepSpeed, which other libraries import on their own, from printing that it has found no GPU."""
    import logging  # the help needs none

    log = logging.getLogger("DeepSpeed")  # its own handler prints to standard output

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    log.addFilter(is_error)
    try:
        yield
    finally:
        log.removeFilter(is_error)


def _module(name: str) -> ModuleType:
    return import_module(f"arctic_training.cli.{COMMANDS[name].module}")


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the path of a recipe and overrides of its values, which `cli.recipe.read_config` reads."""
    parser.add_argument("recipe", metavar="RECIPE", help="path of the recipe")
    what = "override a value of the recipe: optimizer.lr=1e-4; +KEY.PATH=VALUE adds one, ~KEY.PATH removes one"
    parser.add_argument("overrides", metavar="KEY.PATH=VALUE", nargs="*", default=[], help=what)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
