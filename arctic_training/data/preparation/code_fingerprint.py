"""A digest of the code that computed what a cache keeps: of classes, and of all that their files import."""

import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from arctic_training.logging import logger

_PACKAGE = Path(__file__).parents[2]
_DATA = Path(__file__).parents[1]
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+([^\n]*))", re.MULTILINE
)


def code_fingerprint(classes: Iterable[type]) -> str:
    """Returns a digest of the source of ``classes`` and of their base classes, of what their files import, directly or
    through others, and of this package's `data`.

    Libraries are left out: their versions say what code they have.
    """
    classes = list(classes)
    sources = [_source(base) for cls in classes for base in cls.__mro__ if base.__module__ == "__main__"]
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(source_files(classes)):
        digest.update(file.name.encode() + file.read_bytes())
    digest.update("\0".join(sorted(sources)).encode())
    return digest.hexdigest()


def source_files(classes: Iterable[type]) -> set[Path]:
    """Returns the files of which `code_fingerprint` is a digest."""
    files = set(_DATA.rglob("*.py"))
    waiting = [base.__module__ for cls in classes for base in cls.__mro__]
    seen = set(waiting)
    while waiting:
        module = waiting.pop()
        file = _file(module)
        if file is None or file in files:
            continue
        files.add(file)
        for name in _imported(file, module, file.stat().st_mtime_ns):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return files


def _file(module: str) -> Path | None:
    """Returns the file of the code of a module, unless it is a library's, or none. Nothing is imported for it."""
    if module in sys.modules:
        origin = getattr(sys.modules[module], "__file__", None)
    else:
        spec = _spec(module)
        origin = spec.origin if spec is not None else None
    path = Path(origin or "")
    if path.suffix != ".py" or not path.is_file():
        return None
    is_library = any(path.is_relative_to(folder) for folder in _LIBRARIES) or "site-packages" in path.parts
    return None if is_library and not path.is_relative_to(_PACKAGE) else path


def _spec(module: str) -> ModuleSpec | None:
    parent = module.rpartition(".")[0]
    if not parent:
        return PathFinder.find_spec(module)
    if parent in sys.modules:
        places = getattr(sys.modules[parent], "__path__", None)
    else:
        spec = _spec(parent)
        places = spec.submodule_search_locations if spec is not None else None
    return None if places is None else PathFinder.find_spec(module, list(places))


@functools.lru_cache(maxsize=4096)
def _imported(file: Path, module: str, changed: int) -> list[str]:
    """Returns the modules that ``file`` may import, anywhere in it, and as ``changed`` at that time; each after its
    package. Names of a module that are no modules are among them."""
    text = file.read_text(encoding="utf-8", errors="replace")
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    for source, imported, plain in _IMPORT.findall(text):
        parts = [part.split() for part in re.sub(r"#[^\n]*|[()\\]", " ", plain or imported).split(",")]
        firsts = [part[0] for part in parts if part]
        if plain:
            names += firsts
        else:
            origin = _absolute(source, package)
            names += [origin, *(f"{origin}.{first}" for first in firsts if first.isidentifier())]
    own = [one.split(".") for one in names if not _is_library(one.partition(".")[0])]
    return list(dict.fromkeys(".".join(parts[:n]) for parts in own for n in range(1, len(parts) + 1)))


def _absolute(name: str, package: str) -> str:
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError:
        return name.lstrip(".")


@functools.cache
def _is_library(top: str) -> bool:
    """Returns whether a module or package at the top is one of a library, or none at all."""
    if top in sys.stdlib_module_names:
        return True
    spec = _spec(top)
    has_code = spec is not None and spec.origin is not None
    return spec is None or (has_code and _file(top) is None)


def _source(cls: type) -> str:
    """Returns the source of a class that was typed into a notebook."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        logger.warning(f"the source of {cls.__qualname__} cannot be read: when it changes, set another data.cache_dir")
        return cls.__qualname__
