"""Keeps the classes and files of recipes apart that tests of one process use under the same names."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arctic_training import registry
from tests.processes import ROOT

KEPT = (str(ROOT), sys.prefix)
"""Where modules are found that are no recipe's of another test, also in a clone among temporary files."""


@contextmanager
def only_built_in(folder: Path) -> Iterator[None]:
    """Forgets all classes but those of the package meanwhile, and at the end the modules in ``folder``."""
    before = {kind: dict(classes) for kind, classes in registry._REGISTRY.items()}
    files = {name: module for name, module in sys.modules.items() if hasattr(module, "__source__")}
    for name in files:
        del sys.modules[name]
    paths = list(sys.path)
    sys.path[:] = [path for path in paths if path.startswith(KEPT) or not path.startswith(tempfile.gettempdir())]
    for kind, classes in before.items():
        registry._REGISTRY[kind] = {name: one for name, one in classes.items() if is_built_in(one)}
    try:
        yield
    finally:
        for kind, classes in registry._REGISTRY.items():  # some of the package may have been imported meanwhile
            built_in = {name: one for name, one in classes.items() if is_built_in(one)}
            registry._REGISTRY[kind] = built_in | before.get(kind, {})
        for name, module in list(sys.modules.items()):
            if hasattr(module, "__source__") or (getattr(module, "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
        sys.modules.update(files)
        sys.path[:] = paths


def is_built_in(one: type) -> bool:
    """Returns whether ``one`` is a class of the package."""
    return one.__module__.startswith("arctic_training.")
