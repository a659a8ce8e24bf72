"""Puts values in place of ``${key.path}``, ``${env:NAME}`` and ``${package:NAME}``."""

import importlib.util
import os
import re
from dataclasses import replace
from typing import Any

from arctic_training.config.checks.problems import Problem
from arctic_training.config.recipe.node import Node, Path
from arctic_training.config.recipe.yaml_reader import MOST_CHARACTERS, MOST_LEVELS, MOST_NODES
from arctic_training.errors.redaction import register_secret
from arctic_training.registry import suggest

_REFERENCE = re.compile(r"\$\$\{|\$\{([^${}]*)\}|\$\{")
"""An escaped opening ``$${``, a reference, or an opening that is never closed."""


class _Refused(ValueError):
    pass


def interpolate(tree: Node) -> tuple[Node, list[Problem]]:
    """The tree without references, and what is wrong with those that lead nowhere, which stay as they are written."""
    work = _Interpolation(tree)
    return work.resolved(tree, ()), work.problems


class _Interpolation:
    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.problems: list[Problem] = []
        self.trail: list[str] = []
        """The references that are being followed."""
        self.nodes = self.characters = 0

    def resolved(self, node: Node, path: Path) -> Node:
        self.nodes += 1
        if isinstance(node.value, dict):
            return replace(node, value={key: self.resolved(one, (*path, str(key))) for key, one in node.value.items()})
        if isinstance(node.value, list):
            return replace(node, value=[self.resolved(one, (*path, str(n))) for n, one in enumerate(node.value)])
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        if self.trail:
            return self._text(node)
        try:
            return self._text(node)
        except _Refused as error:
            self.problems.append(Problem(path, str(error)))
            return node

    def _text(self, node: Node) -> Node:
        text: str = node.value
        whole = _REFERENCE.fullmatch(text)
        if whole and whole[1] is not None:
            value, secret = self._value(whole[1])
            return replace(node, value=value.value, written=text if secret else value.written)
        secrets = False

        def put(found: re.Match[str]) -> str:
            nonlocal secrets
            if found[0] == "$${":
                return "${"
            if found[1] is None:
                raise _Refused("${ is never closed; write } after the name, or $${ for the characters themselves")
            value, secret = self._value(found[1])
            secrets = secrets or secret or bool(value.written)
            if isinstance(value.value, (dict, list)):
                raise _Refused(
                    f"{found[0]} is a {_kind(value.value)}; it can only be a whole value, not part of a text"
                )
            return _word(value.value)

        done = _REFERENCE.sub(put, text)
        self.characters += len(done)
        if self.characters > MOST_CHARACTERS:
            raise _Refused(f"the references make more than {MOST_CHARACTERS:,} characters")
        return replace(node, value=done, written=text if secrets else "")

    def _value(self, name: str) -> tuple[Node, bool]:
        """What a reference stands for, and whether it may be a secret."""
        if name.startswith("env:"):
            variable = name.removeprefix("env:").strip()
            if variable not in os.environ:
                raise _Refused(f"the environment variable {variable} is not set; set it, or write the value here")
            register_secret(os.environ[variable], f"${{{name}}}")
            return Node(os.environ[variable]), True
        if name.startswith("package:"):
            return Node(_package_folder(name.removeprefix("package:").strip())), False
        if name in self.trail:
            raise _Refused("refers to itself: " + " -> ".join([*self.trail[self.trail.index(name) :], name]))
        if len(self.trail) >= MOST_LEVELS:
            raise _Refused(f"more than {MOST_LEVELS} references lead from one to the next")
        self.trail.append(name)
        try:
            return self.resolved(self._found(name), tuple(name.split("."))), False
        finally:
            self.trail.pop()
            if self.nodes > MOST_NODES:
                raise _Refused(f"the references make more than {MOST_NODES:,} values")

    def _found(self, name: str) -> Node:
        node = self.tree
        for key in name.strip().split("."):
            if isinstance(node.value, str) and "${" in node.value:
                node = self._text(node)
            below = node.step(key)
            if below is None:
                known = [str(one) for one in node.value] if isinstance(node.value, dict) else []
                raise _Refused(f"${{{name}}}: the recipe has no such key; {suggest(key, known)}")
            node = below
        return node


def _package_folder(package: str) -> str:
    """Where an installed Python package lies, for models and data that come as one. It is not imported."""
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise _Refused(f"the Python package {package} is not installed; install it, or write the folder here")
    return next(iter(found.submodule_search_locations))


def _kind(value: Any) -> str:
    return "mapping" if isinstance(value, dict) else "list"


def _word(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(value)
