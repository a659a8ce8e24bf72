"""Keys that a recipe has in a section where they are unknown, and that another section knows."""

from collections.abc import Iterator
from dataclasses import replace

from pydantic import BaseModel

from arctic_training.config.checks.problems import Problem, bare
from arctic_training.config.sections.component import TrainerComponent, listed, marks
from arctic_training.registry import Registered

_UNKNOWN = "unknown; "
_ELSEWHERE = "here this is "


def say_where_keys_belong(problems: list[Problem], trainer: type[Registered]) -> list[Problem]:
    """Returns ``problems`` of a recipe of ``trainer``; one of an unknown key names the sections that know the key."""
    sections = list(_sections(trainer))
    return [_placed(one, sections) if one.of_key and one.text.startswith(_UNKNOWN) else one for one in problems]


def _placed(problem: Problem, sections: list[tuple[str, set[str]]]) -> Problem:
    *_, key = problem.path
    homes = list(dict.fromkeys(f"{name}.{key}" if name else key for name, keys in sections if key in keys))
    if not homes or problem.text.startswith(_UNKNOWN + _ELSEWHERE):
        return problem
    place = ", at the top of the recipe" if homes == [key] else ""
    return replace(problem, text=f"{_UNKNOWN}{_ELSEWHERE}{' or '.join(homes)}{place}")


def _sections(trainer: type[Registered]) -> Iterator[tuple[str, set[str]]]:
    """Yields the keys of the recipe itself, and name and keys of each section that it may have."""
    config: type[BaseModel] = getattr(trainer, "config_type")  # noqa: B009  every component has one
    yield "", set(config.model_fields)
    for name, field in config.model_fields.items():
        slots = [getattr(trainer, mark.types) for mark in marks(field, TrainerComponent)]
        readers = [getattr(cls, "config_type", None) for slot in slots for cls in listed(slot)]
        for reader in [*readers, bare(field.annotation)]:
            if isinstance(reader, type) and issubclass(reader, BaseModel):
                yield name, set(reader.model_fields)
