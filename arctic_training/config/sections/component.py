"""Which class reads a section: the trainer's lists decide, and the first is the default."""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import ValidationError

from arctic_training.config.checks.not_built import TYPES
from arctic_training.config.checks.problems import Problem, Problems, problems_of, shown
from arctic_training.config.sections.base import BaseConfig, ComponentConfig
from arctic_training.errors.types import RegistryError
from arctic_training.registry import Registered, lookup, names, qualified_name, suggest


@dataclass(frozen=True)
class TrainerComponent:
    """Marks a field whose section is read by one of the trainer's ``<types>``.

    It stands beside the section's base class: ``Annotated[SerializeAsAny[C], Slot("model_factory_type")]``.
    """

    types: str


@dataclass(frozen=True)
class AnyComponent:
    """Marks a field whose section, or list of sections, is read by any registered class of ``kind``."""

    kind: str


def find(kind: str, name: str) -> type[Registered]:
    """The class of ``kind`` that a section's ``type`` names. Raises `Problems`."""
    if name in names(kind):
        return lookup(kind, name)
    if name in TYPES:
        raise Problems([Problem(("type",), f"{name}: {TYPES[name]} is not built yet")])
    told = f"no {kind.replace('_', ' ')} is named {name!r}; {suggest(name, names(kind))}"
    raise Problems([Problem(("type",), told)])


def listed(types: type[Registered] | Sequence[type[Registered]]) -> list[type[Registered]]:
    """A trainer states one class or a list of them."""
    return [types] if isinstance(types, type) else list(types)


def resolve_component(
    section: Any, allowed: Sequence[type[Registered]], *, skip_validation: bool = False
) -> ComponentConfig:
    """Let the class that ``section`` names read it. Raises ValueError for a name that does not fit.

    ``skip_validation`` admits every registered class of the kind, listed by the trainer or not.
    """
    if isinstance(section, ComponentConfig):
        section = {name: getattr(section, name) for name in section.model_fields_set}
    if section is None:
        section = {}
    if not isinstance(section, dict):
        raise ValueError(f"{shown(section)}: a mapping is wanted here")
    wanted = section.get("type") or allowed[0].name
    if not isinstance(wanted, str):
        raise Problems([Problem(("type",), f"{shown(wanted)}: a name is wanted here")])
    for cls in allowed:
        if wanted in (cls.name, *getattr(cls, "aliases", ())):
            return _read(cls, section)
    if skip_validation or wanted in TYPES:
        return _read(find(allowed[0].kind, wanted), section)
    told = f"{wanted!r} does not fit here; {suggest(wanted, [cls.name for cls in allowed])}"
    if wanted in names(kind := allowed[0].kind):
        found = lookup(kind, wanted).__name__
        told += (
            f"; to use {found} all the same, write skip_validation: true, or name it in a subclass of the trainer: "
            f"{kind}_type = ({', '.join(cls.__name__ for cls in allowed)}, {found})"
        )
    raise Problems([Problem(("type",), told)])


def parse_component(kind: str, section: Any) -> ComponentConfig:
    """Let the registered class of ``kind`` that a section, or a bare name, names read it."""
    section = {"type": section} if isinstance(section, str) else section
    if not isinstance(section, (dict, ComponentConfig)):
        raise ValueError(f"{shown(section)}: a name, or a mapping with a type, is wanted here")
    name = section.get("type", "") if isinstance(section, dict) else section.type
    if not isinstance(name, str) or not name:
        raise Problems([Problem(("type",), f"a name is wanted here; {suggest(str(name), names(kind))}")])
    return resolve_component(section, [find(kind, name)])


def each(value: Any, read: Callable[[Any], ComponentConfig]) -> list[ComponentConfig]:
    """A list of sections, or a single one, each read. Raises `Problems` with those of all of them."""
    if value is None:
        return []
    sections, problems = [], []
    for number, one in enumerate(value if isinstance(value, list) else [value]):
        place = (str(number),) if isinstance(value, list) else ()
        try:
            sections.append(read(one))
        except Problems as error:
            problems += [replace(problem, path=(*place, *problem.path)) for problem in error.problems]
        except RegistryError as error:
            problems.append(Problem((*place, "type"), str(error)))
        except ValueError as error:
            problems.append(Problem(place, str(error)))
    if problems:
        raise Problems(problems)
    return sections


def incomplete(cls: Any) -> str:
    """What a class of the user's own lacks, so that it cannot be made; empty when it lacks nothing."""
    who = f"{cls.name}: the class {qualified_name(cls)}"
    if lacks := sorted(getattr(cls, "__abstractmethods__", ())):
        return f"{who} lacks {' and '.join(lacks)}, which it has to define"
    reader = getattr(cls, "config_type", None)
    if not (isinstance(reader, type) and issubclass(reader, BaseConfig)):
        return f"{who} states a config_type that is no config"
    slots = [
        mark.types
        for field in reader.model_fields.values()
        for mark in field.metadata
        if isinstance(mark, TrainerComponent)
    ]
    if missing := [name for name in slots if not hasattr(cls, name)]:
        return f"{who} states no {' and no '.join(missing)}"
    if only_annotated := _only_annotated(cls):
        return f"{who} has an annotation that chooses nothing; write {only_annotated}"
    for role in getattr(cls, "roles", ()):
        for part in ("model",) if role.frozen else ("model", "optimizer", "scheduler"):
            key, slot = role.name if part == "model" else role.section(part), f"{part}_factory_type"
            marks = [mark.types for mark in reader.model_fields[key].metadata if isinstance(mark, TrainerComponent)]
            if slot not in marks:
                told = f"{role.name}, and its config reads {key} as no {part}'s section"
                mend = "give the role another name" if marks else f'leave it out there, or mark it Slot("{slot}")'
                return f"{who} has a role {told}; {mend}"
        for key in filter(None, (role.steps_per_update_key, role.deepspeed)):
            if key not in reader.model_fields and not hasattr(reader, key):
                return f"{who} has a role {role.name} that is given {key}, and its config has no such key"
    return ""


def _only_annotated(cls: Any) -> str:
    """Returns how to choose the class that an annotation such as ``config: MyConfig``, or ``Factory[MyConfig]`` among
    the bases, names and the class does not."""
    stated = set[str]()
    for base in cls.__mro__:
        named = [("config", one) for generic in vars(base).get("__orig_bases__", ()) for one in get_args(generic)]
        for name, annotation in [*_annotations(base).items(), *named]:
            chosen = listed(getattr(cls, f"{name}_type", ()))
            for one in (annotation, *get_args(annotation)):
                names_one = isinstance(one, type) and issubclass(one, (Registered, BaseConfig))
                if name not in stated and chosen and names_one and not any(issubclass(had, one) for had in chosen):
                    return f"{name}_type = {one.__name__}"
        # what a class states, and has not from its bases, takes the place of what they say
        stated |= {
            key.removesuffix("_type")
            for key, one in vars(base).items()
            if getattr(super(base, cls), key, None) is not one
        }
    return ""


def _annotations(cls: type) -> dict[str, Any]:
    """Returns those of ``cls`` itself; without those of names that are there for a type checker only."""
    known = {**vars(sys.modules.get(cls.__module__, object)), **vars(cls)}
    found: dict[str, Any] = {}
    for name, annotation in inspect.get_annotations(cls).items():
        try:
            found[name] = eval(annotation, known) if isinstance(annotation, str) else annotation
        except Exception:
            continue
    return found


def _read(cls: type[Registered], section: dict[str, Any]) -> ComponentConfig:
    if told := incomplete(cls):
        raise Problems([Problem(("type",), told)])
    config_type: type[ComponentConfig] = getattr(cls, "config_type")  # noqa: B009  every component has one
    try:
        return config_type.model_validate({**section, "type": cls.name})
    except ValidationError as error:
        raise Problems(problems_of(error, config_type)) from None
