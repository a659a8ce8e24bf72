"""Reads a recipe file, and the files it extends, from disk."""

from pathlib import Path

from arctic_training.config.checks.paths import impossible
from arctic_training.config.checks.sandbox import escapes
from arctic_training.config.recipe.node import Node, merge
from arctic_training.config.recipe.yaml_reader import MOST_CHARACTERS, read_yaml
from arctic_training.errors.types import RecipeError


def read_recipe_file(path: Path, trail: tuple[Path, ...] = ()) -> Node:
    """The recipe at ``path`` put over the one that its ``extends`` names, and so on.

    Raises `RecipeError`. ``trail`` are the files that led here.
    """
    tree = read_yaml(_text(path), str(path))
    extends = tree.step("extends")
    if extends is None:
        return tree
    own = Node({key: one for key, one in tree.value.items() if key != "extends"}, tree.origin, tree.key)
    place = extends.place()
    if not isinstance(extends.value, str) or not extends.value:
        raise RecipeError(f"{place}: extends: the name of one other recipe file is wanted here")
    if "${" in extends.value:
        raise RecipeError(f"{place}: extends: no reference can be used here; files are read before they are resolved")
    if told := impossible(extends.value) or escapes(path.parent / extends.value):
        raise RecipeError(f"{place}: extends: {told}")
    base, so_far = path.parent / extends.value, (*trail, path)
    if base.resolve() in [one.resolve() for one in so_far]:
        told = " -> ".join(str(one) for one in (*so_far, base))
        raise RecipeError(f"{place}: extends: the recipes extend one another without an end: {told}")
    if not base.exists():
        raise RecipeError(f"{place}: extends: {base}: no such file")
    return merge(read_recipe_file(base, so_far), own)


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise RecipeError(f"{path}: a folder; the recipe file in it has to be named")
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RecipeError(f"{str(path)!r}: no such file") from None
    if len(content) > MOST_CHARACTERS:
        raise RecipeError(f"{path}: larger than 1 MB; that is no recipe")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise RecipeError(f"{path}:{line}:{column}: not UTF-8; save the file as UTF-8") from None
