"""Values that a recipe took from the environment. Nothing that this process says of its own accord holds them."""

_SHORTEST = 8
"""Characters; what is shorter, such as a 1, is part of too much that has nothing to do with it."""
_known: dict[str, str] = {}


def register_secret(value: str, written: str) -> None:
    """From now on ``written``, what the recipe says, stands in the place of ``value``."""
    if len(value) >= _SHORTEST:
        _known[value] = written


def redact(text: str) -> str:
    """``text`` as it may be told: in a log, a message, a traceback."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, _known[value])
    return text
