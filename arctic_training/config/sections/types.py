"""Types of values that people write in their own ways.

Numbers: ``1e-4``, ``2k``, ``4ki``, ``1_000``, ``10%``, ``2^20``, ``-10^6``. Durations: ``90`` or ``1e3`` (seconds),
``30s``, ``45m``, ``3h50m``, ``2d``.
"""

import math
import re
from fractions import Fraction
from typing import Annotated, get_args, get_origin

from pydantic import BeforeValidator, WithJsonSchema

from arctic_training.errors.short_repr import short_repr

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PLAIN = r"(?:\d+(?:\.\d*)?|\.\d+)"
_HUMAN = re.compile(rf"({_PLAIN}(?:e[+-]?\d+)?)(ki|mi|gi|ti|k|m|g|b|t|%)?", re.IGNORECASE)
_POWER = re.compile(rf"({_PLAIN})\s*(?:\^|\*\*)\s*([+-]?{_PLAIN})")
_MAX_BITS = 1024
"""Bits of an integer that is a power; those of the largest float."""
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _SECONDS))


def number(text: str) -> int | float | None:
    """Returns the number that ``text`` means, an int where it is integral; None when it is not a number.

    A sign applies to the power: ``-10^2`` is -100, as in mathematics and in Python.
    """
    plain = text.strip().replace("_", "")
    sign = -1 if plain.startswith("-") else 1
    plain = plain[1:] if plain[:1] in ("+", "-") else plain
    if power := _POWER.fullmatch(plain):
        value = _power(power[1], power[2])
    elif human := _HUMAN.fullmatch(plain):
        value = _scaled(human[1], (human[2] or "").lower())
    else:
        return None
    return None if value is None else sign * value


def _power(base: str, exponent: str) -> int | float | None:
    if base.isdecimal() and exponent.lstrip("+").isdecimal():
        integer, times = int(base), int(exponent)
        return integer**times if integer < 2 or times * math.log2(integer) <= _MAX_BITS else None
    try:
        value = float(base) ** float(exponent)
    except (OverflowError, ZeroDivisionError):
        return None
    return _as_int(value)


def _scaled(digits: str, unit: str) -> int | float:
    if digits.isdecimal() and unit != "%":
        return int(digits) * (_UNITS | _BINARY)[unit]
    value = float(digits)
    if unit and value and math.isfinite(value):
        # exactly: of floats, 4.35 times 100 is not integral
        exact = Fraction(digits) * (Fraction(1, 100) if unit == "%" else (_UNITS | _BINARY)[unit])
        value = float(exact) if exact < 2**_MAX_BITS else math.inf
    return _as_int(value)


def _as_int(value: float) -> int | float:
    return int(value) if value.is_integer() and value < 2**53 else value


def _read_int(value: object) -> object:
    value = _read_float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_float(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")
    if isinstance(value, str):
        if (read := number(value)) is None:
            raise ValueError(f"{short_repr(value)} is not a number; write it as 1e-4, 2k, 4ki, 1_000, 10% or 2^20")
        return read
    return value


HumanInt = Annotated[int, BeforeValidator(_read_int)]
HumanFloat = Annotated[float, BeforeValidator(_read_float)]


def _read_seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = value.strip().lower().replace(" ", "")
    match = _DURATION.fullmatch(text)
    if not match and not text.endswith("%") and (seconds := number(text)) is not None:
        return float(seconds)
    if not text or match is None:
        raise ValueError(f"{short_repr(value)} is not a duration; write it as 90, 30s, 45m, 3h50m or 2d")
    return sum(float(count) * _SECONDS[unit] for unit, count in match.groupdict().items() if count)


Duration = Annotated[float, BeforeValidator(_read_seconds), WithJsonSchema({"type": ["number", "string"]})]
"""In seconds."""


def read_numbers(value: object, kind: object) -> object:
    """Returns ``value`` with its strings read as numbers where the annotation ``kind`` accepts numbers only.

    An annotation with a validator of its own, such as `Duration`, reads its strings itself.
    """
    if isinstance(value, dict):
        mapping = next((one for one in (kind, *get_args(kind)) if get_origin(one) is dict), None)
        return (
            value if mapping is None else {key: read_numbers(one, get_args(mapping)[1]) for key, one in value.items()}
        )
    if not _leaves(kind) <= {int, float, type(None), ...}:
        return value
    if isinstance(value, (list, tuple)):
        return [read_numbers(one, kind) for one in value]
    read = number(value) if isinstance(value, str) else None
    return value if read is None else read


def _leaves(kind: object) -> set[object]:
    inner = get_args(kind)
    return set().union(*map(_leaves, inner)) if inner else {kind}
