"""Converts values of a recipe to the types that a config class of another library declares."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from arctic_training.config.sections.types import number


def coerce_values(config_type: type, values: Mapping[str, object]) -> dict[str, object]:
    """Returns ``values`` in the types that ``config_type`` declares: YAML writes 50 for a float, and has no tuples.

    A string that is a number becomes one where a number is declared, and in mappings whose values are not.
    """
    types_by_field = _types_by_field(config_type)
    inner: Mapping[str, Any] = getattr(config_type, "sub_configs", {})
    return {
        name: coerce_values(inner[name], value)
        if isinstance(value, Mapping) and name in inner
        else _coerce(types_by_field.get(name, set()), value)
        for name, value in values.items()
    }


def _types_by_field(config_type: type) -> dict[str, set[object]]:
    if not dataclasses.is_dataclass(config_type):
        return {}
    try:
        hints = get_type_hints(config_type)
    except Exception:  # names that are there for a type checker only
        hints = {}
    annotations = {field.name: hints.get(field.name, field.type) for field in dataclasses.fields(config_type)}
    return {name: _types(one) for name, one in annotations.items() if not isinstance(one, str)}


def _types(annotation: object) -> set[object]:
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*map(_types, get_args(annotation)))
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is dict and str in _types(inner[1]):
        return {Mapping}  # of strings, which stay strings
    return {origin or annotation}


def _coerce(declared: set[object], value: object) -> object:
    """Returns ``value`` as one of the ``declared`` types, or as it is."""
    if isinstance(value, str) and declared & {int, float} and str not in declared:
        value = parsed if (parsed := number(value)) is not None else value
    if isinstance(value, Mapping) and dict in declared:
        return {key: _coerce({int, float}, one) for key, one in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and float in declared and int not in declared:
        return float(value)
    if isinstance(value, float) and value.is_integer() and int in declared and float not in declared:
        return int(value)
    if isinstance(value, list) and tuple in declared and list not in declared:
        return tuple(value)
    return value
