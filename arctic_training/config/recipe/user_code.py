"""Imports the Python file beside a recipe, which registers the classes that it defines."""

import hashlib
import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from arctic_training.errors.types import RecipeError


def import_file(path: Path) -> ModuleType:
    """Returns the module in the file ``path``, which is imported once for each content.

    The file can import files beside it. No bytecode is written. Raises `RecipeError`, which names the line that failed.
    """
    path = path.resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: code: cannot be read ({error.strerror})") from None
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    imported = sys.modules.get(name)
    if imported is not None and getattr(imported, "__source__", None) == source:
        return imported
    loader = SourceFileLoader(name, str(path))
    spec = spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # there is a loader
    module = module_from_spec(spec)
    module.__source__ = source  # type: ignore[attr-defined]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a user's file must not stand in for a library
    write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        place = ":".join(str(one) for one in (error.filename or path, error.lineno, error.offset) if one is not None)
        raise RecipeError(f"{place}: code: {error.msg}") from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        text = " ".join(str(error).split()) or "no message"
        raise RecipeError(f"{_place(error, path)}: code: {type(error).__name__}: {text}") from error
    finally:
        sys.dont_write_bytecode = write_bytecode
    return module


def _place(error: BaseException, path: Path) -> str:
    """Returns the last line in the user's own folder on the way to ``error``."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if Path(frame.filename).parent == path.parent]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else str(path)
