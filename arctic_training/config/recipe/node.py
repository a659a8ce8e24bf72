"""The tree of a recipe, whose nodes know file, line and column of each value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from arctic_training.errors.redaction import redact_value

Path = tuple[str, ...]
"""Keys from the top of a recipe down to a value; a position in a list is its decimal digits."""

SYNONYMS: dict[str, str] = {}
"""Other names of keys, and the keys that they mean, as the sections declare them: a key given over a base recipe takes
the place of the same key under another name."""

LISTS: set[str] = set()
"""Keys whose value is a list, as the sections declare them: a single section may stand where a list of them could."""


def canonical(key: str) -> str:
    """Returns the name that the section itself has for ``key``."""
    return SYNONYMS.get(key, key)


@dataclass(frozen=True)
class Origin:
    """A place in a file, or another source of values, such as the command line, which has no lines."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Node:
    """A value of a recipe and where it was written."""

    value: object
    """A scalar, or a mapping of keys to nodes, or a list of nodes."""
    origin: Origin | None = None
    """Where the value begins; None for a value from Python."""
    key: Origin | None = None
    """Where the key of the value is."""
    written: str = ""
    """The text of the recipe in place of a value from the environment, which may be a secret."""

    def step(self, key: str) -> "Node | None":
        """Returns the node below under ``key``, of a list the position; None when there is none."""
        if isinstance(self.value, dict):
            if key in self.value:
                return self.value[key]  # type: ignore[no-any-return]
            return next((node for name, node in self.value.items() if str(name) == key), None)
        if isinstance(self.value, list) and key.isdecimal() and int(key) < len(self.value):
            return self.value[int(key)]  # type: ignore[no-any-return]
        return None

    def key_of(self, key: str) -> str:
        """Returns the name that this mapping has for ``key``; ``key`` itself where it has none."""
        if self.step(key) is None and isinstance(self.value, dict):
            return next((str(name) for name in self.value if canonical(str(name)) == canonical(key)), key)
        return key

    def place(self, *, of_key: bool = False) -> Origin | None:
        """Returns where a user looks for it: the key of a section and of a wrong key, else the value."""
        if of_key or isinstance(self.value, (dict, list)):
            return self.key or self.origin
        return self.origin or self.key


def from_python(value: object, origin: Origin | None = None) -> Node:
    """Returns the tree of a Python value."""
    if isinstance(value, Mapping):
        return Node({key: from_python(one, origin) for key, one in value.items()}, origin, origin)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return Node([from_python(one, origin) for one in value], origin, origin)
    return Node(value, origin, origin)


def to_python(node: Node) -> object:
    """Returns the value of a tree as dictionaries, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: to_python(one) for key, one in node.value.items()}
    if isinstance(node.value, list):
        return [to_python(one) for one in node.value]
    return node.value


def merge(base: Node, over: Node) -> Node:
    """Returns ``base`` overridden by ``over``: mappings are merged, all other values are replaced."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    renamed = {canonical(str(key)) for key in over.value}
    merged = {k: one for k, one in base.value.items() if k in over.value or canonical(str(k)) not in renamed}
    for key, one in over.value.items():
        merged[key] = merge(merged[key], one) if key in merged else one
    return replace(over, value=merged)


def set_path(tree: Node, path: Path, node: Node) -> Node:
    """Returns ``tree`` with ``node`` at ``path``, creating missing mappings. Raises ValueError for a path through a
    scalar or to a missing position of a list."""
    if not path:
        return replace(node, key=node.key or tree.key)
    first, below = path[0], tree.step(path[0])
    if isinstance(tree.value, list):
        if below is None:
            raise ValueError(f"{first!r} is not a position in a list of {len(tree.value)}, counted from 0")
        items = list(tree.value)
        items[int(first)] = set_path(below, path[1:], node)
        return replace(tree, value=items)
    if not isinstance(tree.value, dict) and tree.value is not None:
        raise ValueError(f"{tree.value!r} is neither a mapping nor a list, so it has no {first!r}")
    entries = {
        key: one
        for key, one in (tree.value or {}).items()
        if str(key) == first or canonical(str(key)) != canonical(first)
    }
    name = next((key for key in entries if str(key) == first), first)
    entries[name] = set_path(below or Node(None, node.origin, node.key), path[1:], node)
    return replace(tree, value=entries)


def redacted(value: object, tree: Node | None) -> object:
    """Returns plain values, those of a config made of ``tree``, with what the recipe has in place of secrets."""
    if isinstance(value, dict):
        return redacted_mapping(value, tree)
    if isinstance(value, list):
        is_list = tree is not None and isinstance(tree.value, list)
        # a single section may stand where a list of them could
        return [redacted(one, _below(tree, str(n)) if is_list else tree) for n, one in enumerate(value)]
    if tree is not None and tree.written and not isinstance(tree.value, (dict, list)):
        if isinstance(value, str) and value.startswith(f"{tree.value}/"):  # a checkpoint of the run that is named
            return tree.written + value[len(str(tree.value)) :]
        return tree.written
    return redact_value(value)


def redacted_mapping(values: Mapping[str, object], tree: Node | None) -> dict[str, object]:
    """Returns `redacted` of every value of a mapping made of ``tree``."""
    return {key: redacted(one, _below(tree, key)) for key, one in values.items()}


def _below(tree: Node | None, key: str) -> Node | None:
    return None if tree is None else tree.step(tree.key_of(key))
