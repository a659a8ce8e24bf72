"""Reads a recipe file and the files that it extends."""

from pathlib import Path

from arctic_training.config.checks.files import invalid_path, outside_root
from arctic_training.config.recipe.node import Node, merge
from arctic_training.config.recipe.yaml_reader import MAX_CHARACTERS, read_yaml
from arctic_training.errors.types import RecipeError


def read_recipe_file(path: Path, trail: tuple[Path, ...] = ()) -> Node:
    """Returns the recipe at ``path``, merged over the one that its ``extends`` names, and so on.

    ``trail`` are the files that extend it. Raises `RecipeError`.
    """
    tree = read_yaml(_text(path), str(path))
    extends = tree.step("extends")
    if extends is None:
        return tree
    assert isinstance(tree.value, dict)
    own = Node({key: one for key, one in tree.value.items() if key != "extends"}, tree.origin, tree.key)
    place = extends.place()
    if not isinstance(extends.value, str) or not extends.value:
        raise RecipeError(f"{place}: extends: expected the name of one other recipe file")
    if "${" in extends.value:
        raise RecipeError(f"{place}: extends: cannot be a reference; files are read before references are resolved")
    if problem := invalid_path(extends.value) or outside_root(path.parent / extends.value):
        raise RecipeError(f"{place}: extends: {problem}")
    base, files = path.parent / extends.value, (*trail, path)
    if base.resolve() in [one.resolve() for one in files]:
        circle = " -> ".join(str(one) for one in (*files, base))
        raise RecipeError(f"{place}: extends: the recipes extend one another in a circle: {circle}")
    if not base.exists():
        raise RecipeError(f"{place}: extends: {base}: no such file")
    return merge(read_recipe_file(base, files), own)


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
