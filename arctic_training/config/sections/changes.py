"""Compares a recipe with the one of a checkpoint: the keys that must be the same for a run to resume."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from arctic_training.config.recipe.node import canonical
from arctic_training.config.sections.deepspeed import without_auto
from arctic_training.errors.short_repr import short_repr

_ABSENT = object()
_PATH_KEYS = ("path", "dir", "file")
"""Ends of keys whose text is a path."""


@dataclass(frozen=True)
class ResumeSafe:
    """Marks a key that does not change what is trained: a run may resume with any value of it."""

    but: frozenset[str] = frozenset()
    """Keys of a mapping that must be the same."""


RESUME_SAFE = ResumeSafe()


@dataclass(frozen=True)
class Change:
    """A value that differs from that of the checkpoint."""

    key: str
    """Its path in the recipe, or the name of what was compared beside the recipe."""
    saved: object
    now: object

    def __str__(self) -> str:
        return f"{self.key}: saved {_shown(self.saved)}, now {_shown(self.now)}"

    def named_by(self, keys: Sequence[str]) -> bool:
        """Returns whether one of ``keys`` is its key or the beginning of it: ``data`` names ``data.seed``."""
        parts = _parts(self.key)
        return any(parts[: len(_parts(one))] == _parts(one) for one in keys)


def resume_relevant_config(config: Any) -> dict[str, object]:
    """Returns every key of a `TrainerConfig` that is not `ResumeSafe`, as plain values that JSON can hold.

    A value from the environment is written as its reference and four digits of its SHA-256: enough to see that it has
    changed, too little to find it.
    """
    return _relevant_keys(config, config.model_dump(mode="json"), config.dump())


def differences(saved: object, config: object, now: object, path: str = "") -> Iterator[Change]:
    """Yields what differs between the `resume_relevant_config` that was ``saved`` and ``now``, that of ``config``."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        if saved.get("type") != now.get("type"):  # another class reads the section, so all of it differs
            yield Change(_under(path, "type"), saved.get("type"), now.get("type"))
            return
        for key in [*now, *(key for key in saved if key not in now)]:
            if key not in saved and isinstance(config, BaseModel) and _is_default(config, key):
                continue  # a key that is newer than the checkpoint
            if key not in now and isinstance(config, BaseModel):
                continue  # a key that was removed, or is resume-safe by now
            below = getattr(config, key, None) if isinstance(config, BaseModel) else _ABSENT
            yield from differences(saved.get(key, _ABSENT), below, now.get(key, _ABSENT), _under(path, key))
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        configs = config if isinstance(config, (list, tuple)) and len(config) == len(now) else [None] * len(now)
        for n, (one, below, other) in enumerate(zip(saved, configs, now, strict=True)):
            yield from differences(one, below, other, _under(path, str(n)))
    elif saved != now:
        yield Change(path, saved, now)


def _relevant(value: object, plain: object, redacted: Any, name: str = "") -> object:
    """Returns the relevant part of ``plain``; ``value`` is it in the config, ``redacted`` without secrets."""
    if isinstance(value, BaseModel) and isinstance(plain, dict):
        return _relevant_keys(value, plain, redacted)
    if isinstance(plain, dict):
        values = value if isinstance(value, Mapping) else {}
        return {key: _relevant(values.get(key), one, redacted[key], key) for key, one in plain.items()}
    if isinstance(plain, list) and isinstance(value, (set, frozenset)):
        return sorted(redacted, key=str)  # a set has another order in every process
    if isinstance(plain, list):
        several = value if isinstance(value, (list, tuple)) and len(value) == len(plain) else [None] * len(plain)
        return [_relevant(*three, name) for three in zip(several, plain, redacted, strict=True)]
    if plain != redacted:
        return f"{redacted} #{hashlib.sha256(str(plain).encode()).hexdigest()[:4]}"
    if isinstance(value, Path) or (isinstance(plain, str) and name.endswith(_PATH_KEYS) and os.path.exists(plain)):
        return os.path.realpath(str(plain))
    return plain


def _relevant_keys(
    section: BaseModel, plain: Mapping[str, object], redacted: Mapping[str, object]
) -> dict[str, object]:
    """Returns the keys of ``section`` that are not `ResumeSafe`; ``plain`` and ``redacted`` are its values."""
    relevant: dict[str, object] = {}
    for key, field in type(section).model_fields.items():
        safe = next((mark for mark in field.metadata if isinstance(mark, ResumeSafe)), None)
        if key not in plain or (safe is not None and not safe.but):
            continue
        one = _relevant(getattr(section, key), plain[key], redacted[key], key)
        if safe is not None and isinstance(one, dict):
            one = without_auto({k: v for k, v in one.items() if k in safe.but})
        relevant[key] = one
    return relevant


def _is_default(config: BaseModel, key: str) -> bool:
    field = type(config).model_fields.get(key)
    return field is not None and getattr(config, key) == field.get_default(call_default_factory=True, validated_data={})


def _under(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _parts(key: str) -> list[str]:
    """Returns the keys of a path, each by the name that its section has for it."""
    return [canonical(part) for part in key.split(".")]


def _shown(value: object) -> str:
    if value is _ABSENT:
        return "nothing"
    if isinstance(value, list):
        return f"{len(value)} entries" if len(value) != 1 else "1 entry"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else short_repr(text)
