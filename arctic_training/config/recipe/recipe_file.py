"""Reads a recipe file and the files that it, or a section in it, extends."""

from dataclasses import replace
from pathlib import Path

from arctic_training.config.checks.files import invalid_path, outside_root
from arctic_training.config.recipe.node import Node, merge
from arctic_training.config.recipe.yaml_reader import MAX_CHARACTERS, read_yaml
from arctic_training.errors.types import RecipeError


def read_recipe_file(path: Path) -> Node:
    """Returns the recipe at ``path``, every mapping in it merged over the file that its ``extends`` names, and so on.

    Raises `RecipeError`.
    """
    return _read((path,), "recipe")


def _read(files: tuple[Path, ...], subject: str) -> Node:
    """Returns the content of the last of ``files``, each of which extends the next."""
    return _extended(read_yaml(_text(files[-1]), str(files[-1]), subject), files, "")


def _extended(node: Node, files: tuple[Path, ...], above: str) -> Node:
    """Returns ``node`` of the last of ``files`` with its mappings merged; ``above`` leads to its keys."""
    if isinstance(node.value, list):
        items = [_extended(one, files, f"{above}{number}.") for number, one in enumerate(node.value)]
        return replace(node, value=items)
    if not isinstance(node.value, dict):
        return node
    entries = {key: _extended(one, files, f"{above}{key}.") for key, one in node.value.items() if key != "extends"}
    own = replace(node, value=entries)
    extends = node.step("extends")
    if extends is None:
        return own
    base = _base(extends, files, f"{extends.place()}: {above}extends")
    return merge(_read((*files, base), "section" if above else "recipe"), own)


def _base(extends: Node, files: tuple[Path, ...], where: str) -> Path:
    """Returns the file that ``extends`` names, relative to the last of ``files``. Raises `RecipeError`."""
    if not isinstance(extends.value, str) or not extends.value:
        raise RecipeError(f"{where}: expected the name of one other recipe file")
    if "${" in extends.value:
        raise RecipeError(f"{where}: cannot be a reference; files are read before references are resolved")
    base = files[-1].parent / extends.value
    if problem := invalid_path(extends.value) or outside_root(base):
        raise RecipeError(f"{where}: {problem}")
    if base.resolve() in [one.resolve() for one in files]:
        circle = " -> ".join(str(one) for one in (*files, base))
        raise RecipeError(f"{where}: the recipes extend one another in a circle: {circle}")
    if not base.exists():
        raise RecipeError(f"{where}: {base}: no such file")
    return base


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise RecipeError(f"{path}: a folder; name the recipe file in it")
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RecipeError(f"{str(path)!r}: no such file") from None
    if len(content) > MAX_CHARACTERS:
        raise RecipeError(f"{path}: larger than 1 MB, too large for a recipe")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise RecipeError(f"{path}:{line}:{column}: not UTF-8; save the file as UTF-8") from None
