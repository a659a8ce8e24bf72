"""Keys that are read with some values of another key only."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from arctic_training.config.checks.problems import Problem, shown


@dataclass(frozen=True, init=False)
class OnlyWith:
    """Marks a key of a section that is read with some values of another key of it only. Any other value than its
    default is refused without them: it would have no effect. Of a list one such entry suffices. Several marks apply
    together.

    ``sigma: Annotated[HumanFloat, OnlyWith("weighting", "edm")] = 0.5``
    """

    key: str
    """The other key."""
    values: tuple[object, ...]
    """Those with which the marked key is read."""

    def __init__(self, key: str, *values: object) -> None:
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "values", values)


def unread_keys(section: BaseModel) -> Iterator[Problem]:
    """Yields a problem for each key of ``section`` that has another value than its default and is not read."""
    for name, field in type(section).model_fields.items():
        marks = [mark for mark in field.metadata if isinstance(mark, OnlyWith)]
        # a default has no effect: `dump` writes all keys
        unread = [one for one in marks if not any(value in one.values for value in _entries(getattr(section, one.key)))]
        if unread and getattr(section, name) != field.get_default(call_default_factory=True, validated_data={}):
            one = unread[0]
            yield Problem((name,), f"is for {one.key}: {' or '.join(map(_plain, one.values))}; remove it")


def _entries(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else shown(value)
