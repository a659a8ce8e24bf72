"""Changes a recipe by words of the command line: ``key.path=value``, ``+key.path=value`` and ``~key.path``."""

from dataclasses import replace

from arctic_training.config.recipe.node import LISTS, Node, Path, canonical, set_path
from arctic_training.config.recipe.yaml_reader import read_value
from arctic_training.errors.types import RecipeError
from arctic_training.registry import suggest

COMMAND_LINE = "command line"


def apply_override(tree: Node, word: str) -> Node:
    """Returns ``tree`` changed by ``word``.

    ``key.path=value`` sets a value. ``+key.path=value`` adds one that is not there, or appends to a list, each element
    where the value is a list too. ``~key.path`` removes one. Values are read as YAML. Raises `RecipeError` for a word
    that is none of the three, or does not fit the recipe.
    """
    sign = word[0] if word[:1] in ("+", "~") else ""
    name, equals, text = word.removeprefix(sign).partition("=")
    path = tuple(name.split("."))
    if not all(path) or bool(equals) == (sign == "~"):
        raise RecipeError(f"{COMMAND_LINE}: {word!r}: expected key.path=value, +key.path=value or ~key.path")
    try:
        if sign == "~":
            return remove_path(tree, path)
        node = read_value(text, COMMAND_LINE)
        return add_path(tree, path, node) if sign else set_path(tree, path, node)
    except RecipeError as error:
        raise RecipeError(f"{COMMAND_LINE}: {name}: {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from None
    except ValueError as error:
        raise RecipeError(f"{COMMAND_LINE}: {name}: {error}") from None


def add_path(tree: Node, path: Path, node: Node) -> Node:
    """Returns ``tree`` with ``node`` added at ``path``. Raises ValueError where another value is that is no list."""
    present: Node | None = tree
    for key in path:
        present = present.step(present.key_of(key)) if present is not None else None
    if present is None or present.value is None:
        return set_path(tree, path, node)
    if isinstance(present.value, list):
        items = list(present.value)
    elif canonical(path[-1]) in LISTS:  # a single section where a list of them may stand
        items = [present]
    else:
        raise ValueError("is there already; to replace it, leave out the +")
    items += node.value if isinstance(node.value, list) else [node]
    return set_path(tree, path, replace(present, value=items))


def remove_path(tree: Node, path: Path) -> Node:
    """Returns ``tree`` without the value at ``path``. Raises ValueError when there is none."""
    key = tree.key_of(path[0])
    below = tree.step(key)
    if below is None:
        known = [str(one) for one in tree.value] if isinstance(tree.value, dict) else []
        known = [str(n) for n in range(len(tree.value))] if isinstance(tree.value, list) else known
        raise ValueError(f"the recipe has no {path[0]!r} to remove; {suggest(path[0], known)}")
    kept = None if len(path) == 1 else remove_path(below, path[1:])
    if isinstance(tree.value, list):
        items = [one if n != int(key) else kept for n, one in enumerate(tree.value)]
        return replace(tree, value=[one for one in items if one is not None])
    assert isinstance(tree.value, dict)
    entries = {name: one if str(name) != key else kept for name, one in tree.value.items()}
    return replace(tree, value={name: one for name, one in entries.items() if one is not None})
