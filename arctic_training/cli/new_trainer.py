"""Writes a trainer, its recipe and its tests, which run as they are written, into a folder of their own."""

import argparse
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from arctic_training.errors.types import InputError

TEMPLATES = ("text", "tensor", "rollout")
"""Kinds of trainers that ``new trainer`` writes."""
_SHARED = {"text": "language", "rollout": "language"}
"""The files beside those of a kind: a small model without weights, and rows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what to write, its name, and what it trains."""
    parser.add_argument("what", metavar="trainer", choices=["trainer"], help="what to write")
    parser.add_argument("name", metavar="NAME", help="its name in a recipe, and that of the folder")
    kinds = (
        "a language model on text (default), a network on tensors, or a language model on rewards of its completions"
    )
    parser.add_argument("--kind", choices=TEMPLATES, default="text", help=f"what it trains: {kinds}")


def run(arguments: argparse.Namespace) -> int:
    """Writes the files below the current folder and prints their names."""
    print(new_trainer(arguments.name, arguments.kind, Path()), end="")
    return 0


def new_trainer(name: str, kind: str, folder: Path) -> str:
    """Writes the files of a trainer called ``name`` into ``folder/name``, and returns a text for the user.

    ``kind`` is one of `TEMPLATES`. Raises `InputError` for a name that cannot be one or is taken, and for a file that
    exists; nothing is written then.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise InputError(f"{name!r} cannot name a trainer: use small letters, digits and _, and begin with a letter")

    from arctic_training.registry import names

    if name in names("trainer"):
        raise InputError(f"a trainer {name!r} is built in; give another name")
    files = _files(name, kind)
    if existing := next((folder / name / file for file in files if (folder / name / file).exists()), None):
        raise InputError(f"{existing} exists, and is not overwritten; give another name, or remove it")
    words = {"name": name, "class_name": "".join(part.capitalize() for part in name.split("_"))}
    for file, template in files.items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
    listed = "\n".join(f"  {name}/{file}" for file in files)
    return f"written:\n{listed}\ntry them:\n  arctic_training {name}/recipe.yaml\n  python -m pytest {name}\n"


def _files(name: str, kind: str) -> dict[str, Traversable]:
    """Returns the templates by the path of the file that is made of each."""
    root = resources.files("arctic_training.cli") / "templates"
    own = {path.name.removesuffix(".txt"): path for path in (root / kind).iterdir()}
    renamed = {"test.py": f"test_{name}.py", "loss.py": f"{name}_loss.py"}
    files = {renamed.get(file, file): path for file, path in sorted(own.items(), reverse=True)}
    if shared := _SHARED.get(kind):
        files |= {"rows.jsonl": root / shared / "rows.jsonl.txt"}
        files |= {"model/config.json": root / shared / "model_config.json.txt"}
    return files
