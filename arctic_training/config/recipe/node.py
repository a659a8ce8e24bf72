"""A recipe as a tree that remembers where each of its values was written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Path = tuple[str, ...]
"""Keys from the top of a recipe down to a value; the position in a list is written as a number."""

SYNONYMS: dict[str, str] = {}
"""Other names of keys, and the keys that they mean, as the sections declare them: a key given over a base recipe takes
the place of the same key under another name."""


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
    value: Any
    """A scalar, or a mapping of keys to nodes, or a list of nodes."""
    origin: Origin | None = None
    """Where the value begins; None for values that come from Python."""
    key: Origin | None = None
    """Where the key of the value stands."""
    written: str = ""
    """What the recipe says in place of a value that came from the environment, and so may be a secret."""

    def step(self, key: str) -> "Node | None":
        """The node below under ``key``, a position in a list being a number; None when there is none."""
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
        """Where a person looks for it: a section, and a wrong key, by the key; else the value."""
        if of_key or isinstance(self.value, (dict, list)):
            return self.key or self.origin
        return self.origin or self.key


def from_python(value: Any, origin: Origin | None = None) -> Node:
    """The tree of a Python value."""
    if isinstance(value, Mapping):
        return Node({key: from_python(one, origin) for key, one in value.items()}, origin, origin)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return Node([from_python(one, origin) for one in value], origin, origin)
    return Node(value, origin, origin)


def to_python(node: Node) -> Any:
    """The tree's value in Python's own mappings and lists."""
    if isinstance(node.value, dict):
        return {key: to_python(one) for key, one in node.value.items()}
    if isinstance(node.value, list):
        return [to_python(one) for one in node.value]
    return node.value


def merge(base: Node, over: Node) -> Node:
    """``base`` with what ``over`` says put over it: mappings are merged, anything else is replaced."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    renamed = {canonical(str(key)) for key in over.value}
    merged = {k: one for k, one in base.value.items() if k in over.value or canonical(str(k)) not in renamed}
    for key, one in over.value.items():
        merged[key] = merge(merged[key], one) if key in merged else one
    return replace(over, value=merged)


def set_path(tree: Node, path: Path, node: Node) -> Node:
    """``tree`` with ``node`` at ``path``, whose missing mappings are made. Raises ValueError where it leads nowhere."""
    if not path:
        return replace(node, key=node.key or tree.key)
    first, below = path[0], tree.step(path[0])
    if isinstance(tree.value, list):
        if below is None:
            raise ValueError(f"{first!r} is no position in a list of {len(tree.value)}, which counts from 0")
        items = list(tree.value)
        items[int(first)] = set_path(below, path[1:], node)
        return replace(tree, value=items)
    if not isinstance(tree.value, dict) and tree.value is not None:
        raise ValueError(f"{tree.value!r} is neither a mapping nor a list, so that it has no {first!r}")
    entries = {
        key: one
        for key, one in (tree.value or {}).items()
        if str(key) == first or canonical(str(key)) != canonical(first)
    }
    name = next((key for key in entries if str(key) == first), first)
    entries[name] = set_path(below or Node(None, node.origin, node.key), path[1:], node)
    return replace(tree, value=entries)


def secrets(tree: Node) -> dict[str, str]:
    """Every value of the tree that came from the environment, and what the recipe says in its place."""
    if isinstance(tree.value, dict):
        return {secret: said for one in tree.value.values() for secret, said in secrets(one).items()}
    if isinstance(tree.value, list):
        return {secret: said for one in tree.value for secret, said in secrets(one).items()}
    return {str(tree.value): tree.written} if tree.written and tree.value != "" else {}


def redacted(value: Any, tree: Node | None, known: Mapping[str, str]) -> Any:
    """What a config made of ``tree`` holds, with what the recipe says in place of what came from the environment."""
    if isinstance(value, dict):
        return {key: redacted(one, _below(tree, key), known) for key, one in value.items()}
    if isinstance(value, list):
        several = tree is not None and isinstance(tree.value, list)
        # a single section may stand where a list of them could
        return [redacted(one, _below(tree, str(n)) if several else tree, known) for n, one in enumerate(value)]
    if tree is not None and tree.written and not isinstance(tree.value, (dict, list)):
        return tree.written
    return mask(value, known)


def _below(tree: Node | None, key: str) -> Node | None:
    return None if tree is None else tree.step(tree.key_of(key))


def mask(value: Any, known: Mapping[str, str]) -> Any:
    """``value`` with what the recipe says in place of every long text that came from the environment.

    A short one, such as a 1, is part of too much that has nothing to do with it.
    """
    if isinstance(value, dict):
        return {key: mask(one, known) for key, one in value.items()}
    if isinstance(value, list):
        return [mask(one, known) for one in value]
    if isinstance(value, bool) or value is None:
        return value
    long = {secret: said for secret, said in known.items() if len(secret) >= 8}
    if str(value) in long:
        return long[str(value)]
    if isinstance(value, str):
        for secret, said in long.items():
            value = value.replace(secret, said)
    return value
