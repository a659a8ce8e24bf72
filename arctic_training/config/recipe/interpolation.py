"""Resolves the references ``${key.path}``, ``${env:NAME}`` and ``${package:NAME}`` of a recipe."""

import importlib.util
import os
import re
from dataclasses import replace

from arctic_training.config.checks.problems import Problem, shown
from arctic_training.config.recipe.node import Node, Path
from arctic_training.config.recipe.yaml_reader import MAX_CHARACTERS, MAX_LEVELS, MAX_NODES
from arctic_training.errors.redaction import register_secret
from arctic_training.registry import suggest

_REFERENCE = re.compile(r"\$\$\{|\$\{([^${}]*)\}|\$\{")
"""An escaped opening ``$${``, a reference, or an opening that is never closed."""


class _InvalidReference(ValueError):
    pass


def interpolate(tree: Node) -> tuple[Node, list[Problem]]:
    """Returns the tree with references resolved, and the problems of those that cannot be, which stay as they are."""
    resolver = _Resolver(tree)
    return resolver.resolve(tree, ()), resolver.problems


class _Resolver:
    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.problems: list[Problem] = []
        self.trail: list[str] = []
        """The references that are being resolved."""
        self.nodes = self.characters = 0

    def resolve(self, node: Node, path: Path) -> Node:
        """Returns ``node``, at ``path`` of the recipe, with references resolved."""
        self.nodes += 1
        if isinstance(node.value, dict):
            return replace(node, value={key: self.resolve(one, (*path, str(key))) for key, one in node.value.items()})
        if isinstance(node.value, list):
            return replace(node, value=[self.resolve(one, (*path, str(n))) for n, one in enumerate(node.value)])
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        try:
            return self._text(node)
        except _InvalidReference as error:
            if self.trail:
                raise
            self.problems.append(Problem(path, str(error)))
            return node

    def _text(self, node: Node) -> Node:
        text = str(node.value)
        only = _REFERENCE.fullmatch(text)
        if only and only[1] is not None:
            value, secret = self._value(only[1])
            return replace(node, value=value.value, written=text if secret else value.written)
        has_secrets = False

        def substitute(match: re.Match[str]) -> str:
            nonlocal has_secrets
            if match[0] == "$${":
                return "${"
            if match[1] is None:
                raise _InvalidReference("${ is never closed; write } after the name, or $${ for a literal ${")
            value, secret = self._value(match[1])
            has_secrets = has_secrets or secret or bool(value.written)
            if isinstance(value.value, (dict, list)):
                kind = "mapping" if isinstance(value.value, dict) else "list"
                raise _InvalidReference(f"{match[0]} is a {kind}; it can only be the entire value, not part of a text")
            return shown(value.value) if isinstance(value.value, bool | None) else str(value.value)

        resolved = _REFERENCE.sub(substitute, text)
        self.characters += len(resolved)
        if self.characters > MAX_CHARACTERS:
            raise _InvalidReference(f"the references expand to more than {MAX_CHARACTERS:,} characters")
        return replace(node, value=resolved, written=text if has_secrets else "")

    def _value(self, name: str) -> tuple[Node, bool]:
        """Returns the value of a reference, and whether it may be a secret."""
        if name.startswith("env:"):
            variable = name.removeprefix("env:").strip()
            if variable not in os.environ:
                raise _InvalidReference(f"the environment variable {variable} is not set; set it or write the value")
            register_secret(os.environ[variable], f"${{{name}}}")
            return Node(os.environ[variable]), True
        if name.startswith("package:"):
            return Node(_package_folder(name.removeprefix("package:").strip())), False
        if name in self.trail:
            raise _InvalidReference("refers to itself: " + " -> ".join([*self.trail[self.trail.index(name) :], name]))
        if len(self.trail) >= MAX_LEVELS:
            raise _InvalidReference(f"references nested deeper than {MAX_LEVELS} levels")
        self.trail.append(name)
        try:
            return self.resolve(self._lookup(name), tuple(name.split("."))), False
        finally:
            self.trail.pop()
            if self.nodes > MAX_NODES:
                raise _InvalidReference(f"the references expand to more than {MAX_NODES:,} values")

    def _lookup(self, name: str) -> Node:
        node = self.tree
        for key in name.strip().split("."):
            if isinstance(node.value, str) and "${" in node.value:
                node = self._text(node)
            below = node.step(key)
            if below is None:
                known = [str(one) for one in node.value] if isinstance(node.value, dict) else []
                raise _InvalidReference(f"${{{name}}}: the recipe has no such key; {suggest(key, known)}")
            node = below
        return node


def _package_folder(package: str) -> str:
    """Returns the folder of an installed Python package, of models or data, without importing it."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise _InvalidReference(f"the Python package {package} is not installed; install it or write the folder")
    return next(iter(spec.submodule_search_locations))
