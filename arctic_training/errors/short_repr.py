"""The short form of a value in a message."""

import reprlib

_LONGEST = 60
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = _LONGEST


def short_repr(value: object) -> str:
    """Returns the representation of ``value`` in at most 60 characters."""
    text = _REPR.repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
