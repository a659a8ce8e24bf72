"""Places a problem in the recipe: file, line and column of the value or key that is wrong."""

import re
from collections.abc import Collection

from arctic_training.config.checks.problems import Problem
from arctic_training.config.recipe.node import Node, Origin
from arctic_training.errors.redaction import redact

_BEGINS_WITH_KEY = re.compile(r"(\w+(?:\.\w+)*): (.*)", re.DOTALL)


def located(problems: list[Problem], tree: Node) -> list[str]:
    """Returns ``file:line:column: key.path: text`` for each problem, without secrets, sorted by line."""
    lines = []
    for problem in problems:
        node, path = _find(problem.path, tree)
        place = node.place(of_key=problem.of_key)
        if node is tree and place is not None:
            place = Origin(place.source)  # a key of the top level that the recipe does not have
        text = redact(problem.text)
        if node.written and node.value != "":  # a secret that is too short to be replaced everywhere
            text = text.replace(str(node.value), node.written)
        line = ": ".join(filter(None, [str(place or ""), ".".join(path), text])).replace("\n", "\\n")
        lines.append((place.line if place else 0, line))
    return [line for _, line in sorted(lines, key=lambda one: one[0])]


def place(error: Exception, tree: Node | None, keys: Collection[str]) -> None:
    """Puts file, line and column before the text of ``error`` where it begins with one of the ``keys`` of a recipe."""
    match = _BEGINS_WITH_KEY.fullmatch(str(error))
    path = tuple(match[1].split(".")) if match else ()
    if match and tree is not None and path[0] in keys:
        text, *traceback = match[2].split("\n")
        error.args = ("\n".join([*located([Problem(path, text)], tree), *traceback]),)


def _find(keys: tuple[str, ...], tree: Node) -> tuple[Node, list[str]]:
    """Returns the innermost node on the way along ``keys``, and the keys as the recipe has them."""
    node, path, below = tree, list[str](), True
    for key in keys:
        if below:
            name = node.key_of(key)
            step = node.step(name)
            if step is None and key.isdecimal() and not isinstance(node.value, list):
                continue  # a single section stands for a list of one
            node, key, below = step or node, name, step is not None
        path.append(key)
    return node, path
