"""Reads JSON text, and refuses two equal keys in one mapping, of which Python's own reader keeps the last."""

import json
from collections.abc import Sequence

from arctic_training.errors.types import DataError


class RepeatedKeyError(DataError):
    """A mapping in JSON has a key twice, so that one of the two values would be lost."""


def _mapping(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for n, key in enumerate(keys) if key in keys[:n])
        raise RepeatedKeyError(f"a mapping has the key {json.dumps(key, ensure_ascii=False)} twice; remove one")
    return mapping


DECODER = json.JSONDecoder(object_pairs_hook=_mapping)
"""A decoder whose ``decode`` and ``raw_decode`` raise `RepeatedKeyError` beside what those of `json` raise."""


def loads(text: str) -> object:
    """Returns the value of JSON text. Raises `RepeatedKeyError`, and what ``json.loads`` raises."""
    return DECODER.decode(text)
