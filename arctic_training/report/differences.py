"""The differences between the recipes, or the environments, of several runs."""

from collections.abc import Mapping
from typing import Any

_MISSING = "-"


def flatten(value: object, path: str = "") -> dict[str, str]:
    """Returns the text of each value in mappings and lists, by its dotted path."""
    if isinstance(value, Mapping) and value:
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list) and any(isinstance(one, (Mapping, list)) for one in value):
        items = list(enumerate(value))
    else:
        return {path: "" if value is None else str(value)}
    flat: dict[str, str] = {}
    for key, one in items:
        flat |= flatten(one, f"{path}.{key}" if path else str(key))
    return flat


def differences(values: Mapping[str, Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Returns each key whose values differ between runs, with the value of each run."""
    keys = dict.fromkeys(key for one in values.values() for key in one)
    rows = [(key, [one.get(key, _MISSING) for one in values.values()]) for key in keys]
    return [(key, row) for key, row in rows if len(set(row)) > 1]
