"""Docstrings: present in public definitions, with the errors raised and the shapes of tensors; names."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from arctic_training.errors import types
from tests.processes import ROOT as REPOSITORY
from tests.tracked import tracked

RAISED = {name for name, value in vars(types).items() if inspect.isclass(value)} | {"ValueError", "RuntimeError"}
TENSOR_ROOMS = ("loss", "objectives", "trainer", "distributed", "generation", "data.batching")
"""Rooms whose public functions give the shapes of the tensors in their signatures."""


@dataclass
class Definition:
    place: str
    text: str
    """The docstring; of a method or property without one, that of the base class."""
    source: ast.FunctionDef | None
    """None of a class."""


@cache
def definitions() -> list[Definition]:
    """Returns the public classes, functions, methods and properties of the package."""
    paths = [path for path in tracked("arctic_training/**/*.py") if not path.name.startswith("__")]
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths]
    return [one for name in names for one in public(name)]


def public(module: str) -> Iterator[Definition]:
    short = module.removeprefix("arctic_training.")
    for name, value in vars(importlib.import_module(module)).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module:
            continue
        if inspect.isclass(value):
            yield Definition(f"{short}: {name}", value.__doc__ or "", None)
            for attribute, member in list(vars(value).items()):
                function = getattr(member, "fget", None) or getattr(member, "__func__", member)
                if not attribute.startswith("_") and inspect.isfunction(function):
                    text = inspect.getdoc(getattr(value, attribute)) or ""
                    yield Definition(f"{short}: {name}.{attribute}", text, parsed(function))
        elif inspect.isfunction(value):
            yield Definition(f"{short}: {name}", inspect.getdoc(value) or "", parsed(value))


def parsed(function: Any) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    except (OSError, SyntaxError):  # a method that a dataclass or pydantic wrote
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


def raises(function: ast.FunctionDef) -> set[str]:
    """Returns the errors that a function raises in its own body."""
    errors = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc is not None]
    names = [getattr(error, "func", error) for error in errors]
    return {name.id for name in names if isinstance(name, ast.Name)} & RAISED


def test_public_definitions_have_docstrings() -> None:
    missing = [one.place for one in definitions() if not one.text]
    assert not missing, "no docstring:\n" + "\n".join(missing)


def test_functions_that_raise_say_so() -> None:
    silent = [one for one in definitions() if one.source and raises(one.source) and "Raises" not in one.text]
    assert not silent, "no Raises:\n" + "\n".join(f"{one.place}: {raises(one.source)}" for one in silent if one.source)


def test_tensors_of_signatures_have_shapes() -> None:
    def has_tensors(function: Any) -> bool:
        arguments = [*function.args.args, *function.args.kwonlyargs]
        notes = [one.annotation for one in arguments] + [function.returns]
        return any(re.search(r"\bTensor\b", ast.unparse(note)) for note in notes if note is not None)

    bare = [
        one.place
        for one in definitions()
        if one.place.startswith(TENSOR_ROOMS)
        and one.source
        and has_tensors(one.source)
        and not re.search(r"\[|scalar", one.text)
    ]
    assert not bare, "no shapes:\n" + "\n".join(bare)


QUESTIONS = {"What", "Whether", "How", "When", "Where", "Which", "Who"}


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    starts = [
        f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"
        for path in tracked("arctic_training/**/*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node))
        if text.split()[0] in QUESTIONS
    ]
    assert not starts, "\n".join(starts)


PARTICIPLES = {"told", "said", "made", "asked", "given", "there", "whole", "wanted", "found"}
"""Words that do not say what a thing is."""


def test_names_say_what_a_thing_is() -> None:
    vague = [
        f"{path.relative_to(REPOSITORY)}:{line}: {name}"
        for path in tracked(*(f"{folder}/**/*.py" for folder in ("arctic_training", "tests", "benchmarks", "projects")))
        for name, line in names(ast.parse(path.read_text(encoding="utf-8")))
        if name in PARTICIPLES
    ]
    assert not vague, "\n".join(vague)


def names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Returns each name that a module binds, with its line, except imports under their own name."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name, node.lineno
