"""Imports the Python file beside a recipe, so that the classes defined in it can be named."""

import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from arctic_training.errors.types import RecipeError


def import_file(path: Path) -> ModuleType:
    """The module that ``path`` holds, made once for each content. Raises `RecipeError`, naming the line at fault.

    Files beside it can be imported by it. Nothing is written.
    """
    path = path.resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: code: cannot be read ({error.strerror})") from None
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__source__", None) == source:
        return there
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__source__ = source  # type: ignore[attr-defined]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a file of the user's must not stand in for a library
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        del sys.modules[name]
        place = ":".join(str(one) for one in (error.filename or path, error.lineno, error.offset) if one is not None)
        raise RecipeError(f"{place}: code: {error.msg}") from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise RecipeError(f"{_place(error, path)}: code: {type(error).__name__}: {_line(error)}") from error
    finally:
        sys.dont_write_bytecode = writes
    return module


def _place(error: BaseException, path: Path) -> str:
    """The last line of the user's own folder that led to ``error``."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent == path.parent]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(path)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"
