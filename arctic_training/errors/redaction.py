"""Keeps values that a recipe took from the environment out of everything that this process writes."""

_SHORTEST_SECRET = 8
"""Characters; a shorter text, such as a 1, is part of too much that has nothing to do with it."""
_secrets: dict[str, str] = {}


def register_secret(value: str, written: str) -> None:
    """Makes `redact` replace ``value`` by ``written``, the reference that the recipe has in its place."""
    if len(value) >= _SHORTEST_SECRET:
        _secrets[value] = written


def redact(text: str) -> str:
    """Returns ``text`` without secrets, for a log, a message or a traceback."""
    for value in sorted(_secrets, key=len, reverse=True):
        text = text.replace(value, _secrets[value])
    return text


def redact_value(value: object) -> object:
    """Returns mappings, lists and scalars without secrets, at any depth."""
    if isinstance(value, dict):
        return {key: redact_value(one) for key, one in value.items()}
    if isinstance(value, list):
        return [redact_value(one) for one in value]
    if isinstance(value, str):
        return redact(value)
    return value if isinstance(value, bool) else _secrets.get(str(value), value)
