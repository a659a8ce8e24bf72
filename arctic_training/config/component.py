"""Which class reads a section: the trainer's lists decide, and the first is the default."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arctic_training.config.base import ComponentConfig
from arctic_training.registry import Registered, lookup, nearest


@dataclass(frozen=True)
class Slot:
    """Marks a field whose section is read by one of the trainer's ``<types>``: ``Annotated[SerializeAsAny[C], Slot(..)]``."""

    types: str


@dataclass(frozen=True)
class Shelf:
    """Marks a field whose section, or list of sections, is read by any registered class of ``kind``."""

    kind: str


def listed(types: type[Registered] | Sequence[type[Registered]]) -> list[type[Registered]]:
    """A trainer states one class or a list of them."""
    return [types] if isinstance(types, type) else list(types)


def choose(section: Any, allowed: Sequence[type[Registered]], *, skip_validation: bool = False) -> ComponentConfig:
    """Let the class that ``section`` names read it. Raises ValueError for a name that does not fit.

    ``skip_validation`` admits every registered class of the kind, listed by the trainer or not.
    """
    if isinstance(section, ComponentConfig):
        section = {name: getattr(section, name) for name in section.model_fields_set}
    if section is None:
        section = {}
    if not isinstance(section, dict):
        raise ValueError("a mapping is wanted here")
    wanted = section.get("type") or allowed[0].name
    if not isinstance(wanted, str):
        raise ValueError(f"type: a name is wanted, not {wanted!r}")
    for cls in allowed:
        if wanted in (cls.name, *getattr(cls, "aliases", ())):
            return _read(cls, section)
    if skip_validation:
        return _read(lookup(allowed[0].kind, wanted), section)
    raise ValueError(f"type: {wanted!r} does not fit here; {nearest(wanted, [cls.name for cls in allowed])}")


def from_shelf(kind: str, section: Any) -> ComponentConfig:
    """Let the registered class of ``kind`` that a section, or a bare name, names read it."""
    section = {"type": section} if isinstance(section, str) else section
    if not isinstance(section, (dict, ComponentConfig)):
        raise ValueError("a name, or a mapping with a type, is wanted here")
    name = section["type"] if isinstance(section, dict) and "type" in section else getattr(section, "type", "")
    return choose(section, [lookup(kind, name)])


def _read(cls: type[Registered], section: dict[str, Any]) -> ComponentConfig:
    config_type: type[ComponentConfig] = getattr(cls, "config_type")  # noqa: B009  every component has one
    return config_type.model_validate({**section, "type": cls.name})
