"""Numbers as people write them: ``1e-4``, ``2k``, ``4ki``, ``1_000``, ``10%``, ``2^20``, ``-10^6``."""

import math
import re
from fractions import Fraction
from typing import Annotated, Any, get_args, get_origin

from pydantic import BeforeValidator

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PLAIN = r"(?:\d+(?:\.\d*)?|\.\d+)"
_HUMAN = re.compile(rf"({_PLAIN}(?:e[+-]?\d+)?)(ki|mi|gi|ti|k|m|g|b|t|%)?", re.IGNORECASE)
_POWER = re.compile(rf"({_PLAIN})\s*(?:\^|\*\*)\s*([+-]?{_PLAIN})")
_MOST_BITS = 1024
"""Of a whole number that is a power: a float has no more."""


def number(text: str) -> int | float | None:
    """The number a person means by ``text``, or None when it is no number. Whole numbers come back as int.

    A sign is that of the whole number: ``-10^2`` is -100, as in mathematics and in Python.
    """
    plain = text.strip().replace("_", "")
    sign = -1 if plain.startswith("-") else 1
    plain = plain[1:] if plain[:1] in ("+", "-") else plain
    if power := _POWER.fullmatch(plain):
        found = _power(power[1], power[2])
    elif human := _HUMAN.fullmatch(plain):
        found = _scaled(human[1], (human[2] or "").lower())
    else:
        return None
    return None if found is None else sign * found


def _power(base: str, exponent: str) -> int | float | None:
    if base.isdecimal() and exponent.lstrip("+").isdecimal():
        whole, times = int(base), int(exponent)
        return whole**times if whole < 2 or times * math.log2(whole) <= _MOST_BITS else None
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
        # exactly: of floats, 4.35 times 100 is no whole number
        exact = Fraction(digits) * (Fraction(1, 100) if unit == "%" else (_UNITS | _BINARY)[unit])
        value = float(exact) if exact < 2**_MOST_BITS else math.inf
    return _as_int(value)


def _as_int(value: float) -> int | float:
    return int(value) if value.is_integer() and value < 2**53 else value


def _whole(value: Any) -> Any:
    value = _real(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _real(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    if isinstance(value, str):
        read = number(value)
        if read is None:
            raise ValueError(f"{value!r} is no number; numbers may be written 1e-4, 2k, 4ki, 1_000, 10%, 2^20")
        return read
    return value


HumanInt = Annotated[int, BeforeValidator(_whole)]
HumanFloat = Annotated[float, BeforeValidator(_real)]


def read_numbers(value: Any, kind: Any) -> Any:
    """Returns ``value`` with its texts read as numbers where the annotation ``kind`` takes nothing but numbers.

    What an annotation reads by a validator of its own, such as a length of time, is left to it.
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


def _leaves(kind: Any) -> set[Any]:
    inner = get_args(kind)
    return set().union(*map(_leaves, inner)) if inner else {kind}
