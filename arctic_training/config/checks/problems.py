"""Problems of a recipe, and pydantic's errors as such problems."""

import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from arctic_training.config.checks.foreign_keys import foreign_key
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import RegistryError
from arctic_training.registry import did_you_mean

_BEGINS_WITH_KEY = re.compile(r"([a-z_0-9]+): (.*)")
_CHOICE = re.compile("'([^']*)'")
REQUIRED = "Field required"
"""The text of a key that is missing; pydantic's."""


@dataclass(frozen=True)
class Problem:
    """A value or key of a recipe that is wrong, and why."""

    path: tuple[str, ...]
    """Keys from the section down to the value."""
    text: str
    of_key: bool = False
    """The key itself is wrong, not its value."""
    value: object = field(default=None, compare=False)


class Problems(ValueError):
    """Several problems of one section, raised where a validator may raise a ValueError."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{'.'.join(one.path)}: {one.text}" for one in self.problems))


def problems_of_keys(texts: Mapping[str, str]) -> list[Problem]:
    """Returns a problem for each key of a section whose text is not empty."""
    return [Problem((key,), text) for key, text in texts.items() if text]


def problems_of(error: ValidationError, config: type[BaseModel]) -> list[Problem]:
    """Returns every problem that ``config`` and the sections inside it found, one for each value."""
    problems: dict[tuple[str, ...], Problem] = {}
    for details in error.errors(include_url=False):
        path, section = _resolve(details["loc"], config)
        for problem in _translate(dict(details), path, section):
            other = problems.get(problem.path)
            if other is None:
                problems[problem.path] = problem
            elif problem.text not in other.text:  # each member of a union has its own
                text = f"{other.text}; or {problem.text.removeprefix(f'{shown(problem.value)} should be ')}"
                problems[problem.path] = Problem(other.path, text, other.of_key, other.value)
    # of a list that a union accepts, what is wrong inside it says more than that the other members are no lists
    containers = {path for path, one in problems.items() if isinstance(one.value, (list, dict)) and not one.of_key}
    inside = {other[:length] for other in problems for length in range(len(other))}
    return [one for path, one in problems.items() if path not in containers & inside]


def unknown(name: str, known: Iterable[str]) -> str:
    """Returns the text of an unknown key: what it is here if it is another trainer's word, else the nearest of the
    ``known`` keys, or all of them."""
    known = sorted(known)
    return f"unknown; {foreign_key(name) or did_you_mean(name, known) or 'there are: ' + ', '.join(known)}"


def shown(value: object) -> str:
    """Returns a value of a recipe as a message names it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return short_repr(value)


def _translate(details: dict[str, Any], path: tuple[str, ...], section: type[BaseModel] | None) -> list[Problem]:
    """Returns the problems of one of pydantic's errors at ``path``, a key of ``section``."""
    kind, value, inner = details["type"], details["input"], details.get("ctx", {}).get("error")
    if isinstance(inner, (Problems, ValidationError)):
        problems = inner.problems if isinstance(inner, Problems) else problems_of(inner, BaseModel)
        return [Problem((*path, *one.path), one.text, one.of_key, one.value) for one in problems]
    if isinstance(inner, RegistryError):
        return [Problem((*path, "type"), str(inner))]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        if feature := getattr(section, "not_built", {}).get(path[-1]):
            return [Problem(path, f"{feature[0]} is not built yet; remove this key", value=value)]
        known = [name for name, one in (section.model_fields.items() if section else ()) if not one.exclude]
        return [Problem(path, unknown(path[-1], [*known, *getattr(section, "synonyms", ())]), of_key=True)]
    if kind == "invalid_key":
        return [Problem(path, "a key should be a word", of_key=True)]
    if kind in ("value_error", "assertion_error"):
        text = " ".join(str(inner).split())
        match = _BEGINS_WITH_KEY.fullmatch(text)
        if match and section is not None and match[1] in section.model_fields:  # raised by the section for a key
            return [Problem((*path, match[1]), match[2])]
        return [Problem(path, text, value=value)]
    return [Problem(path, _text(kind, value, details["msg"]), kind == "missing", value)]


def _text(kind: str, value: object, message: str) -> str:
    """Returns pydantic's own message with the value in place of "Input", and a hint."""
    text = re.sub(r" or instance of \w+| for <class .*>", "", message).replace("a valid dictionary", "a mapping")
    if kind == "missing":
        return text
    text = text.replace("Input", shown(value), 1) if "Input" in text else f"{shown(value)}: {text}"
    if kind == "literal_error":
        guess = did_you_mean(str(value), _CHOICE.findall(message))
        return f"{text}; {guess}" if guess else text
    return f"{text}; put it in quotes if it is meant as text" if kind in ("string_type", "path_type") else text


def _resolve(
    location: tuple[str | int, ...], config: type[BaseModel]
) -> tuple[tuple[str, ...], type[BaseModel] | None]:
    """Returns pydantic's location without the names of a union's members, and the section of its last key."""
    path: list[str] = []
    kind: object = config
    section: type[BaseModel] | None = config
    for part in location:
        if _is_union(kind := bare(kind)):
            kind = _member(kind, str(part))
            continue
        section = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        path.append(str(part))
        kind = _below(kind, part)
    return tuple(path), section


def bare(kind: object) -> object:
    """Returns a type without its annotations, and without None."""
    while True:
        if get_origin(kind) is Annotated or (hasattr(kind, "__metadata__") and get_args(kind)):
            kind = get_args(kind)[0]
        elif _is_union(kind, least=1) and type(None) in get_args(kind):
            members = [one for one in get_args(kind) if one is not type(None)]
            kind = Union[tuple(members)]  # noqa: UP007  the members are known at run time only
        else:
            return kind


def _is_union(kind: object, least: int = 2) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and len(get_args(kind)) >= least


def _member(kind: object, tag: str) -> object:
    for one in get_args(kind):
        member = bare(one)
        if tag.startswith((getattr(member, "__name__", "?"), str(get_origin(member) or "?"))):
            return member
    return Any


def _below(kind: object, part: str | int) -> object:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        info = kind.model_fields.get(str(part))
        return info.annotation if info else Any
    inside = get_args(kind)
    if get_origin(kind) in (list, tuple, typing.Sequence) and inside:
        return inside[min(int(part), len(inside) - 1)] if isinstance(part, int) else Any
    return inside[1] if get_origin(kind) is dict else Any
