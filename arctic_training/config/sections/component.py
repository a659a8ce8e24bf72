"""Chooses the class that reads a section: one of those that the trainer lists, the first by default."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from arctic_training.config.checks.foreign_keys import foreign_name
from arctic_training.config.checks.not_built import TYPES
from arctic_training.config.checks.problems import Problem, Problems, problems_of, shown
from arctic_training.config.sections.base import BaseConfig, C, ComponentConfig
from arctic_training.config.sections.passed import PASSED, PASSED_MODULE
from arctic_training.errors.types import RegistryError
from arctic_training.registry import Registered, annotations, lookup, names, qualified_name, suggest, words

M = TypeVar("M")

COMPONENTS = "components"
"""In the JSON Schema of a field without one of the marks below: the kinds of the classes that may read its section, or
each of its list."""


class Configured(Registered, Generic[C]):
    """Base of components that are built from their section of the recipe alone, which ``config_type`` reads."""

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: C) -> None:
        self.config = config


@dataclass(frozen=True)
class TrainerComponent:
    """Marks a field whose section is read by one of the trainer's ``<types>``.

    It annotates the section's base class: ``Annotated[SerializeAsAny[C], TrainerComponent("model_factory_type")]``.
    """

    types: str


@dataclass(frozen=True)
class AnyComponent:
    """Marks a field whose section, or list of sections, is read by any registered class of ``kind``."""

    kind: str


def marks(field: FieldInfo, kind: type[M]) -> list[M]:
    """Returns the marks of ``kind`` that a field has."""
    return [one for one in field.metadata if isinstance(one, kind)]


def find(kind: str, name: str) -> type[Registered]:
    """Returns the class of ``kind`` that a section's ``type`` names. Raises `Problems`."""
    if name in names(kind):
        return lookup(kind, name)
    if name in TYPES:
        raise Problems([Problem(("type",), f"{name}: {TYPES[name]} is not built yet")])
    text = f"no {words(kind)} is named {name!r}; {foreign_name(kind, name) or suggest(name, names(kind))}"
    raise Problems([Problem(("type",), text)])


def listed(types: type[Registered] | Sequence[type[Registered]]) -> list[type[Registered]]:
    """Returns the classes that a trainer lists, which may be a single one."""
    return [types] if isinstance(types, type) else list(types)


def resolve_component(
    section: object, allowed: Sequence[type[Registered]], *, skip_validation: bool = False
) -> ComponentConfig:
    """Returns ``section`` as the config of the class that its ``type`` names, one of ``allowed``.

    ``skip_validation`` accepts every registered class of the kind. Raises ValueError for a section or name that is not
    accepted.
    """
    if isinstance(section, ComponentConfig):
        section = {name: getattr(section, name) for name in section.model_fields_set}
    if section is None:
        section = {}
    if not isinstance(section, dict):
        raise ValueError(f"{shown(section)} should be a mapping")
    name = section.get("type") or allowed[0].name
    if not isinstance(name, str):
        raise Problems([Problem(("type",), f"{shown(name)} should be a name")])
    for cls in allowed:
        if name in (cls.name, *getattr(cls, "aliases", ())):
            return _read(cls, section)
    if skip_validation or name in TYPES or name in (PASSED, PASSED_MODULE):
        return _read(find(allowed[0].kind, name), section)
    hint = foreign_name(allowed[0].kind, name) or suggest(name, [cls.name for cls in allowed])
    text = f"{name!r} is not accepted here; {hint}"
    if name in names(kind := allowed[0].kind):
        other = lookup(kind, name).__name__
        text += (
            f"; to use {other} all the same, write skip_validation: true, or name it in a subclass of the trainer: "
            f"{kind}_type = ({', '.join(cls.__name__ for cls in allowed)}, {other})"
        )
    raise Problems([Problem(("type",), text)])


def parse_component(kind: str, section: object) -> ComponentConfig:
    """Returns a section, or a bare name, as the config of the registered class of ``kind`` that it names.

    Raises ValueError for a section or name that is not accepted.
    """
    section = {"type": section} if isinstance(section, str) else section
    if not isinstance(section, (dict, ComponentConfig)):
        raise ValueError(f"{shown(section)} should be a name, or a mapping with a type")
    name = section.get("type", "") if isinstance(section, dict) else section.type
    if not isinstance(name, str) or not name:
        raise Problems([Problem(("type",), f"expected a name; {suggest(str(name), names(kind))}")])
    return resolve_component(section, [find(kind, name)])


def each(value: object, read: Callable[[object], ComponentConfig]) -> list[ComponentConfig]:
    """Returns a list of sections, or a single one, each read by ``read``. Raises `Problems` with those of all."""
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


def incomplete(cls: type[Registered]) -> str:
    """Returns what a class of the user lacks to be usable; empty when it lacks nothing."""
    who = f"{cls.name}: the class {qualified_name(cls)}"
    if lacks := sorted(getattr(cls, "__abstractmethods__", ())):
        return f"{who} lacks {' and '.join(lacks)}, which it has to define"
    reader = getattr(cls, "config_type", None)
    if not (isinstance(reader, type) and issubclass(reader, BaseConfig)):
        return f"{who} states a config_type that is not a config"
    slots = [mark.types for field in reader.model_fields.values() for mark in marks(field, TrainerComponent)]
    if missing := [name for name in slots if not hasattr(cls, name)]:
        return f"{who} states no {' and no '.join(missing)}"
    if only_annotated := _only_annotated(cls):
        return f"{who} has an annotation that chooses nothing; write {only_annotated}"
    for role in getattr(cls, "roles", ()):
        for part in ("model",) if role.frozen else ("model", "optimizer", "scheduler"):
            key, slot = role.name if part == "model" else role.section(part), f"{part}_factory_type"
            stated = [mark.types for mark in marks(reader.model_fields[key], TrainerComponent)]
            if slot not in stated:
                text = f"{role.name}, and its config does not read {key} as a section for the {part}"
                hint = f'remove it there, or mark it TrainerComponent("{slot}")'
                return f"{who} has a role {text}; {'give the role another name' if stated else hint}"
        for key in filter(None, (role.steps_per_update_key, role.deepspeed, role.not_needed_key, role.precompute_key)):
            if key not in reader.model_fields and not hasattr(reader, key):
                return f"{who} has a role {role.name} that is given {key}, and its config has no such key"
    return ""


def _only_annotated(cls: type[Registered]) -> str:
    """Returns the assignment that is missing where an annotation such as ``config: MyConfig``, or ``Factory[MyConfig]``
    among the bases, names a class that ``cls`` does not choose."""
    stated = set[str]()
    for base in cls.__mro__:
        arguments = [("config", one) for generic in vars(base).get("__orig_bases__", ()) for one in get_args(generic)]
        for name, annotation in [*annotations(base).items(), *arguments]:
            chosen = listed(getattr(cls, f"{name}_type", ()))
            for one in (annotation, *get_args(annotation)):
                names_one = isinstance(one, type) and issubclass(one, (Registered, BaseConfig))
                if name not in stated and chosen and names_one and not any(issubclass(other, one) for other in chosen):
                    return f"{name}_type = {one.__name__}"
        # what a class assigns itself overrides what its bases annotate
        stated |= {
            key.removesuffix("_type")
            for key, one in vars(base).items()
            if getattr(super(base, cls), key, None) is not one
        }
    return ""


def _read(cls: type[Registered], section: dict[str, object]) -> ComponentConfig:
    if text := incomplete(cls):
        raise Problems([Problem(("type",), text)])
    config_type: type[ComponentConfig] = getattr(cls, "config_type")  # noqa: B009  every component has one
    try:
        return config_type.model_validate({**section, "type": cls.name})
    except ValidationError as error:
        raise Problems(problems_of(error, config_type)) from None
