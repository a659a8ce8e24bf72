"""Checks that the files and folders that a recipe names exist and can be used, without reading or writing any.

``ARCTIC_TRAINING_ROOT`` keeps the recipes of others below one folder: every path that a recipe itself names has to lie
in it, symbolic links resolved. What the user's own code, or a library that is handed a setting, opens is not checked:
code is part of a recipe too.
"""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from arctic_training.config.checks.problems import Problem
from arctic_training.errors.short_repr import short_repr

ROOT_VARIABLE = "ARCTIC_TRAINING_ROOT"
_MAY_BE_PATHS = ("name_or_path", "chat_template")
"""Keys whose text may be a path or something else."""
_TRUE = {"1", "ON", "YES", "TRUE"}
_HUB_NAME = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")


def file_problems(value: object, path: tuple[str, ...] = ()) -> Iterator[Problem]:
    """Yields what is wrong with the files and folders that a config, at ``path`` of the recipe, names at any depth."""
    if isinstance(value, BaseModel):
        check = getattr(value, "missing_paths", None)  # every section of this package has it
        yield from (replace(one, path=(*path, *one.path)) for one in (check() if check else []))
        for name in type(value).model_fields:
            yield from file_problems(getattr(value, name), (*path, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from file_problems(one, (*path, str(number)))
    elif os.environ.get(ROOT_VARIABLE) and _is_path(value, path[-1]) and not invalid_path(str(value)):
        files = glob.iglob(os.path.expanduser(str(value)), recursive=True)
        if text := next(filter(None, map(outside_root, [str(value), *files])), ""):
            yield Problem(path, text)


def outside_root(path: Path | str) -> str:
    """Returns why ``path`` must not be used: it leads out of the root. Empty when it may be, or without a root."""
    root = os.environ.get(ROOT_VARIABLE)
    if not root or invalid_path(str(path)):
        return ""
    resolved_root, resolved = os.path.realpath(root), os.path.realpath(os.path.expanduser(path))
    if os.path.commonpath([resolved_root, resolved]) == resolved_root:
        return ""
    return f"{path} leads out of {root}; {ROOT_VARIABLE} allows no other folder"


def unreadable(name: str, *, holds: str = "") -> str:
    """Returns why a model, tokenizer or data set cannot be read; empty when it can, or when it may be on the hub.

    ``holds`` is a file that its folder must have.
    """
    if problem := invalid_path(name):
        return problem
    path = Path(name).expanduser()
    if not path.exists():
        return "" if is_hub_name(name) else f"{name}: no such file or folder"
    if not os.access(path, os.R_OK):
        return f"{name}: cannot be read"
    if holds and path.is_dir() and not (path / holds).exists():
        return f"{name}: no {holds} in it; expected a folder that save_pretrained wrote"
    return ""


def is_hub_name(name: str) -> bool:
    """Returns whether a model, tokenizer or data set of the hub can have that name: ``OWNER/NAME`` or ``NAME``, and no
    file of the format GGUF."""
    return bool(_HUB_NAME.fullmatch(name)) and not name.endswith(".gguf")


def invalid_path(name: str) -> str:
    """Returns why no file can have that name; empty when one can."""
    try:
        os.stat(Path(name).expanduser())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
    except (OSError, ValueError, RuntimeError) as error:
        return f"{short_repr(name)}: not a path of a file ({getattr(error, 'strerror', None) or error})"
    return ""


def unappendable(path: Path | None) -> str:
    """Returns why the file ``path`` cannot be appended to; empty when it can, or is None."""
    if path is None:
        return ""
    if problem := invalid_path(str(path)):
        return problem
    return f"{path} is a folder; expected a file" if path.is_dir() else unwritable(path.parent)


def unwritable(folder: Path | None) -> str:
    """Returns why ``folder`` cannot be created and written to; empty when it can, or is None."""
    if folder is None:
        return ""
    if problem := invalid_path(str(folder)):
        return problem
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is a file; expected a folder"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing}: no permission to write there"


def not_on_hub(reason: str) -> str:
    """Returns what to say of a name that is no folder here and that the hub, for ``reason``, does not give."""
    if any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return "no folder here, and HF_HUB_OFFLINE forbids asking the hub; unset it, or name a folder"
    return f"no folder here, and not available from the hub: {reason}"


def _is_path(value: object, key: str) -> bool:
    """Returns whether the value of ``key`` is a path, and no name on the hub, template or other text."""
    if not isinstance(value, str) or key not in _MAY_BE_PATHS:
        return isinstance(value, Path)
    return (
        value.startswith((".", "/", "~")) or ".." in value.split("/") or glob.has_magic(value) or os.path.exists(value)
    )
