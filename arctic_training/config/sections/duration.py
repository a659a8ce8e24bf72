"""Lengths of time as people write them: ``90`` or ``1e3`` (seconds), ``30s``, ``45m``, ``3h50m``, ``2d``."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from arctic_training.config.sections.numbers import number

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_WRITTEN = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip().lower().replace(" ", "")
    found = _WRITTEN.fullmatch(text)
    if not found and not text.endswith("%") and (seconds := number(text)) is not None:
        return float(seconds)
    if not text or found is None:
        raise ValueError(f"{value!r} is no length of time; it may be written 90, 30s, 45m, 3h50m, 2d")
    return sum(float(count) * _UNITS[unit] for unit, count in found.groupdict().items() if count)


Duration = Annotated[float, BeforeValidator(_seconds)]
"""In seconds."""
