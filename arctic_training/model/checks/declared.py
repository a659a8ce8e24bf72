"""Values of a recipe as the config class of another library declares them."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from arctic_training.config.sections.numbers import number


def declared(config_type: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``values`` as a config class declares them: YAML says 50 where a float is wanted, and has no tuples.

    Where a number is wanted, and in mappings of which the class says no more, a text that is a number is read as one.
    """
    kinds = _kinds_of_fields(config_type)
    inner: Mapping[str, Any] = getattr(config_type, "sub_configs", {})
    return {
        name: declared(inner[name], value)
        if isinstance(value, Mapping) and name in inner
        else _as_one_of(kinds.get(name, set()), value)
        for name, value in values.items()
    }


def _kinds_of_fields(config_type: Any) -> dict[str, set[Any]]:
    if not dataclasses.is_dataclass(config_type):
        return {}
    try:
        hints = get_type_hints(config_type)
    except Exception:  # names that are there for a type checker only
        hints = {}
    kinds = {field.name: hints.get(field.name, field.type) for field in dataclasses.fields(config_type)}
    return {name: _kinds(kind) for name, kind in kinds.items() if not isinstance(kind, str)}


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is dict and str in _kinds(inner[1]):
        return {Mapping}  # of texts, which stay as they are
    return {origin or annotation}


def _as_one_of(kinds: set[Any], value: Any) -> Any:
    if isinstance(value, str) and kinds & {int, float} and str not in kinds:
        value = read if (read := number(value)) is not None else value
    if isinstance(value, Mapping) and dict in kinds:
        return {key: _as_one_of({int, float}, one) for key, one in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    if isinstance(value, list) and tuple in kinds and list not in kinds:
        return tuple(value)
    return value
