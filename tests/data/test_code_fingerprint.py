"""The digest of code: it changes with every file that the code of a class imports, and with no other."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import arctic_training.builtin
from arctic_training import DPOTrainer
from arctic_training.data.preparation import code_fingerprint as module
from arctic_training.data.preparation.code_fingerprint import code_fingerprint, source_files
from arctic_training.registry import lookup

FILES = {
    "fp_train.py": "import json, fp_plain\nfrom fp_package import deep\nclass Own:\n    pass\n",
    "fp_plain.py": "VALUE = 1\n",
    "fp_package/__init__.py": "",
    "fp_package/deep.py": "from .sub import (\n    far,  # the next one\n    other,\n)\n",
    "fp_package/sub/__init__.py": "",
    "fp_package/sub/far.py": "def compute():\n    from ..lazy import value\n    return value\n",
    "fp_package/sub/other.py": "",
    "fp_package/lazy.py": "value = 1\n",
    "fp_package/unused.py": "",
    "fp_other.py": "",
}
IMPORTED = FILES.keys() - {"fp_package/unused.py", "fp_other.py"}


@pytest.fixture
def own_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A class of a user's, whose file imports others: at the top, inside a function, relative, from a package."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module._is_library.cache_clear()
    yield importlib.import_module("fp_train").Own
    for name in [name for name in sys.modules if name.startswith("fp_")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", sorted(FILES))
def test_it_changes_with_what_the_class_imports(name: str, own_class: type, tmp_path: Path) -> None:
    before = code_fingerprint([own_class])
    assert code_fingerprint([own_class]) == before
    (tmp_path / name).write_text(FILES[name] + "# changed\n")
    assert (code_fingerprint([own_class]) != before) == (name in IMPORTED)


def test_nothing_is_imported_for_it(own_class: type) -> None:
    source_files([own_class])
    assert "fp_package.lazy" not in sys.modules


@pytest.mark.parametrize(
    ("cls", "files"),
    [
        (DPOTrainer, ["loss/preference.py", "loss/cross_entropy.py", "model/token_losses.py", "engine/engine.py"]),
        (lookup("generator", "polynomial_addition"), ["symbolic/polynomials.py", "symbolic/polynomial_sampler.py"]),
    ],
)
def test_the_formulas_of_the_package_are_in_it(cls: type, files: list[str]) -> None:
    package = Path(arctic_training.__file__).parent
    names = {str(file.relative_to(package)) for file in source_files([cls])}  # no library is among them
    assert names >= set(files)
    assert "data/preparation/map_rows.py" in names
