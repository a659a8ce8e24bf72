"""Writes a commented recipe to start from, out of what a trainer and its sections say of their keys."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from arctic_training.config.get_config import get_config
from arctic_training.config.recipe.describe import descriptions
from arctic_training.config.recipe.node import from_python, to_python
from arctic_training.config.recipe.overrides import apply_override
from arctic_training.config.recipe.yaml_writer import write_word
from arctic_training.config.sections.base import BaseConfig
from arctic_training.config.sections.data import DataConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import RecipeError
from arctic_training.registry import lookup

_WIDTH = 80
Values = Mapping[str, object]


def write_starter(
    trainer: str, starters: Mapping[str, Values], overrides: Sequence[str] = (), *, every_key: bool = False
) -> str:
    """Returns a recipe of ``trainer`` with the values that ``starters`` has for it, or for the nearest class that it
    descends from, changed by ``overrides`` (see `apply_override`). A comment says what each key is for.

    Keys in comments have their defaults: those of the trainer itself, or with ``every_key`` all of them. Raises
    `RegistryError` for an unknown trainer, and `RecipeError` where the values are not all that it needs.
    """
    cls = lookup("trainer", trainer)
    bases = (str(vars(base).get("name", "")) for base in cls.__mro__)
    tree = from_python({"type": trainer, **next((starters[name] for name in bases if name in starters), {})})
    for word in overrides:
        tree = apply_override(tree, word)
    values = to_python(tree)
    assert isinstance(values, dict)
    config = get_config(values)
    if config.missing_objects:
        raise RecipeError(config.missing_objects)
    del values["type"]
    subject = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
    about = "# Keys behind a # without a space are those left out, with their defaults."
    lines = [*_comment(subject, ""), "#", about, "", f"type: {trainer}", ""]
    own = {key for key in type(config).model_fields if every_key or key not in TrainerConfig.model_fields}
    lines += _section(config, values, own - {"type"}, "", every_key=every_key)
    return "\n".join(lines).rstrip() + "\n"


def _section(config: BaseModel, values: Values, optional: set[str], indent: str, *, every_key: bool) -> Iterator[str]:
    """Yields the lines of a section that ``config`` reads: ``values``, then the keys of ``optional`` as comments."""
    names: Mapping[str, str] = getattr(config, "synonyms", {})
    meanings = descriptions(type(config))
    for key, value in values.items():
        name = names.get(key, key)
        if key == "type":
            yield f"{indent}type: {write_word(value)}"
            continue
        read = getattr(config, name)
        yield from _comment(f"{meanings.get(name, '')} {_rows(read)}", indent)
        yield from _value(key, value, read, indent, every_key=every_key)
        if not indent:
            yield ""
    stated = {names.get(key, key) for key in values}
    for name, field in type(config).model_fields.items():
        if name in optional and name not in stated and not field.exclude:
            yield from _comment(meanings.get(name, ""), indent)
            yield f"{indent}#{name}: {_default(field)}".rstrip()
            if not indent:
                yield ""


def _value(key: str, value: object, read: object, indent: str, *, every_key: bool) -> Iterator[str]:
    """Yields the lines of a key whose ``value`` became ``read``."""
    several = read if isinstance(read, list) else [read]
    sections = value if isinstance(value, list) else [value]
    if not all(isinstance(one, BaseConfig) for one in several) or not all(isinstance(one, dict) for one in sections):
        yield f"{indent}{key}: {write_word(value)}"
        return
    yield f"{indent}{key}:"
    inner = f"{indent}    " if isinstance(value, list) else f"{indent}  "
    for config, section in zip(several, sections, strict=True):
        optional = set(type(config).model_fields) - {"type"} if every_key else set[str]()
        lines = list(_section(config, section, optional, inner, every_key=every_key))
        if isinstance(value, list):
            first = next(n for n, line in enumerate(lines) if not line.lstrip().startswith("#"))
            lines[first] = f"{indent}  - {lines[first].lstrip()}"
        yield from lines


def _rows(section: object) -> str:
    """Returns what rows the class reads that a section of data names; empty for any other section."""
    if not isinstance(section, DataConfig):
        return ""
    return (lookup("data_factory", section.type).__doc__ or "").strip().partition("\n")[0]


def _comment(text: str, indent: str) -> list[str]:
    plain = " ".join(text.replace("``", "`").split())
    return textwrap.wrap(plain, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True, validated_data={})
    return write_word(value.model_dump(mode="json") if isinstance(value, BaseModel) else value)
