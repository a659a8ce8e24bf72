"""What is wrong with a section, and where: pydantic's findings as sentences."""

import difflib
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from arctic_training.errors.types import RegistryError

_MAPPINGS = {"dict_type", "model_type", "model_attributes_type", "dataclass_type", "mapping_type"}
_LISTS = {"list_type", "tuple_type", "set_type", "iterable_type"}
_WHOLE = {"int_type", "int_parsing", "int_from_float", "int_parsing_size"}
_TEXTS = {"string_type", "path_type"}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "of at most"),
}

_NAMED = re.compile(r"([a-z_0-9]+): (.*)")


@dataclass(frozen=True)
class Problem:
    path: tuple[str, ...]
    """Keys from the section down to what is wrong."""
    text: str
    of_key: bool = False
    """The key itself is wrong, not its value."""
    value: Any = field(default=None, compare=False)


class Problems(ValueError):
    """Several problems of one section, raised where a validator may raise a ValueError."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{'.'.join(one.path)}: {one.text}" for one in self.problems))


def problems_of(error: ValidationError, config: type[BaseModel]) -> list[Problem]:
    """Every problem that ``config`` found, those of the sections inside it among them, one for each value."""
    found: dict[tuple[str, ...], Problem] = {}
    for details in error.errors(include_url=False):
        path, holder = _walk(details["loc"], config)
        for problem in _explained(dict(details), path, holder):
            there = found.get(problem.path)
            if there is None:
                found[problem.path] = problem
            elif problem.text not in there.text:  # the members of a union each say what they want
                found[problem.path] = Problem(there.path, f"{there.text}; or {problem.text}", there.of_key, there.value)
    # of a list that a union would take, what is wrong inside it says more than that the other members are no lists
    return [
        one for path, one in found.items() if not (_is_branch(one) and any(_inside(other, path) for other in found))
    ]


def _is_branch(problem: Problem) -> bool:
    return isinstance(problem.value, (list, dict)) and not problem.of_key


def _inside(path: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return len(path) > len(other) and path[: len(other)] == other


def unknown(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"unknown; did you mean {close[0]}?" if close else f"unknown; there are: {', '.join(sorted(known))}"


def _explained(details: dict[str, Any], path: tuple[str, ...], holder: type[BaseModel] | None) -> list[Problem]:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    inner = context.get("error")
    if isinstance(inner, Problems):
        return [Problem((*path, *one.path), one.text, one.of_key, one.value) for one in inner.problems]
    if isinstance(inner, ValidationError):
        return [Problem((*path, *one.path), one.text, one.of_key, one.value) for one in problems_of(inner, BaseModel)]
    if isinstance(inner, RegistryError):
        return [Problem((*path, "type"), str(inner))]
    if kind == "extra_forbidden" or kind == "unexpected_keyword_argument":
        known = [name for name, one in (holder.model_fields.items() if holder else ()) if not one.exclude]
        return [Problem(path, unknown(path[-1], [*known, *getattr(holder, "synonyms", ())]), of_key=True)]
    if kind == "invalid_key":
        return [Problem(path, "a key must be a word", of_key=True)]
    text = _sentence(kind, value, context, details["msg"])
    named = _NAMED.fullmatch(text) if kind == "value_error" else None
    if named and holder is not None and named[1] in holder.model_fields:  # said about the section, and meant for a key
        return [Problem((*path, named[1]), named[2])]
    return [Problem(path, text, kind == "missing", value)]


def _sentence(kind: str, value: Any, context: dict[str, Any], message: str) -> str:
    said = shown(value)
    if kind == "missing":
        return "missing; it has to be given"
    if kind in _WHOLE:
        return f"{said} is no whole number"
    if kind in ("float_type", "float_parsing"):
        return f"{said} is no number"
    if kind in ("bool_type", "bool_parsing"):
        return f"{said}: write true or false"
    if kind in _TEXTS:
        return f"{said} is no text; put it in quotes if it is meant as one"
    if kind in _MAPPINGS:
        return f"{said}: a mapping is wanted here"
    if kind in _LISTS:
        return f"{said}: a list is wanted here"
    if kind in ("literal_error", "enum"):
        return _choice(value, context["expected"])
    if kind in _BOUNDS:
        name, relation = _BOUNDS[kind]
        return f"{said}: a number {relation} {context[name]:g} is wanted"
    if kind == "finite_number":
        return f"{said}: a finite number is wanted"
    if kind in ("too_short", "too_long"):
        few = kind == "too_short"
        limit = context["min_length" if few else "max_length"]
        return f"{context['actual_length']} given; {'at least' if few else 'at most'} {limit} wanted"
    if kind in ("value_error", "assertion_error"):
        return " ".join(str(context["error"]).split())
    text = message.removeprefix("Input should be ").removeprefix("a valid ")
    return f"{said}: {text} is wanted" if message.startswith("Input should be ") else f"{said}: {message}"


def _choice(value: Any, expected: str) -> str:
    choices = [one.strip("'") for one in expected.replace(" or ", ", ").split(", ")]
    close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.6)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{shown(value)} does not fit here; {meant}there are: {', '.join(choices)}"


def shown(value: Any) -> str:
    """A value as a message names it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _walk(location: tuple[str | int, ...], config: type[BaseModel]) -> tuple[tuple[str, ...], type[BaseModel] | None]:
    """Pydantic's location without the names of a union's members, and the model that holds its last key."""
    path: list[str] = []
    kind: Any = config
    holder: type[BaseModel] | None = config
    for part in location:
        if _is_union(kind := _bare(kind)):
            kind = _member(kind, str(part))
            continue
        holder = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        path.append(str(part))
        kind = _below(kind, part)
    return tuple(path), holder


def _bare(kind: Any) -> Any:
    """A type without its annotations, and without None."""
    while True:
        if get_origin(kind) is Annotated or (hasattr(kind, "__metadata__") and get_args(kind)):
            kind = get_args(kind)[0]
        elif _is_union(kind, least=1) and type(None) in get_args(kind):
            left = [one for one in get_args(kind) if one is not type(None)]
            kind = Union[tuple(left)]  # noqa: UP007  the members are known at run time only
        else:
            return kind


def _is_union(kind: Any, least: int = 2) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and len(get_args(kind)) >= least


def _member(kind: Any, tag: str) -> Any:
    for one in get_args(kind):
        bare = _bare(one)
        if tag.startswith((getattr(bare, "__name__", "?"), str(get_origin(bare) or "?"))):
            return bare
    return Any


def _below(kind: Any, part: str | int) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        found = kind.model_fields.get(str(part))
        return found.annotation if found else Any
    inside = get_args(kind)
    if get_origin(kind) in (list, tuple, typing.Sequence) and inside:
        return inside[min(int(part), len(inside) - 1)] if isinstance(part, int) else Any
    return inside[1] if get_origin(kind) is dict else Any
