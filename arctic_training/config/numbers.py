"""Numbers as people write them: ``1e-4``, ``2k``, ``4ki``, ``1_000``, ``10%``, ``2^20``."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_HUMAN = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)(ki|mi|gi|ti|k|m|g|b|t|%)?", re.IGNORECASE)
_POWER = re.compile(r"(\d+)\s*(?:\^|\*\*)\s*(\d+)")


def number(text: str) -> int | float | None:
    """The number a person means by ``text``, or None when it is no number. Whole numbers come back as int."""
    plain = text.strip().replace("_", "")
    if power := _POWER.fullmatch(plain):
        base, exponent = int(power[1]), int(power[2])
        return base**exponent if exponent * max(base.bit_length(), 1) <= 1024 else None
    if not (human := _HUMAN.fullmatch(plain)):
        return None
    unit = (human[2] or "").lower()
    if re.fullmatch(r"[+-]?\d+", human[1]) and unit != "%":
        return int(human[1]) * (_UNITS | _BINARY)[unit]
    value = float(human[1]) / 100 if unit == "%" else float(human[1]) * (_UNITS | _BINARY)[unit]
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


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
