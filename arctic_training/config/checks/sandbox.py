"""Keeps the paths of a recipe that came from somebody else below one folder: ``ARCTIC_TRAINING_ROOT``.

Who runs others' recipes sets it. It holds for every path that the recipe itself names, symbolic links followed; what
the user's own code, or a library that is handed a setting, does is not held: the user's code is a recipe's too.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from arctic_training.config.checks.paths import impossible
from arctic_training.config.checks.problems import Problem

VARIABLE = "ARCTIC_TRAINING_ROOT"
_NAMES = ("name_or_path", "chat_template")
"""Keys whose text may be a path, or something else."""


def escapes(path: Path | str) -> str:
    """What is said of a path that leads out of the root; empty when it does not, or when there is no root."""
    root = os.environ.get(VARIABLE)
    if not root or impossible(str(path)):
        return ""
    inside, real = os.path.realpath(root), os.path.realpath(os.path.expanduser(path))
    if os.path.commonpath([inside, real]) == inside:
        return ""
    return f"{path} leads out of {root}, and {VARIABLE} allows no other folder"


def escaping(value: Any, path: tuple[str, ...] = ()) -> Iterator[Problem]:
    """Every path in a config that leads out of the root."""
    if not os.environ.get(VARIABLE):
        return
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from escaping(getattr(value, name), (*path, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from escaping(one, (*path, str(number)))
    elif isinstance(value, Path) or (isinstance(value, str) and path[-1] in _NAMES and _leads_somewhere(value)):
        found = [] if impossible(str(value)) else glob.iglob(os.path.expanduser(value), recursive=True)
        told = filter(None, map(escapes, [value, *found]))
        if first := next(told, ""):
            yield Problem(path, first)


def _leads_somewhere(name: str) -> bool:
    """Whether it may be a path, and not only a name on the hub, or a template."""
    return name.startswith((".", "/", "~")) or ".." in name.split("/") or glob.has_magic(name) or os.path.exists(name)
