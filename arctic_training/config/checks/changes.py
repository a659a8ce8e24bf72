"""What of a recipe must be as it was for a run to go on from a checkpoint, and what has become another."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from arctic_training.config.checks.deepspeed import without_auto as without_auto
from arctic_training.config.recipe.node import canonical

_NOTHING = object()
_PATHS = ("path", "dir", "file")


@dataclass(frozen=True)
class ResumeSafe:
    """Marks a key that changes nothing of what is trained: a run goes on, whatever it says now."""

    but: frozenset[str] = frozenset()
    """Keys of a mapping that are not free."""


RESUME_SAFE = ResumeSafe()


@dataclass(frozen=True)
class Change:
    key: str
    """Its path in the recipe, or the name of what was compared beside the recipe."""
    saved: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: saved {_shown(self.saved)}, now {_shown(self.now)}"

    def named_by(self, wanted: Sequence[str]) -> bool:
        """Whether one of ``wanted`` is its key, or the beginning of it: ``data`` names ``data.seed``."""
        parts = _parts(self.key)
        return any(parts[: len(_parts(one))] == _parts(one) for one in wanted)


def resume_relevant_config(config: Any) -> dict[str, Any]:
    """Every key of a `TrainerConfig` that is not `ResumeSafe`, as plain values that JSON can hold.

    A value from the environment is what the recipe says in its place, and four digits of its SHA-256: enough to see
    that it is another, too little to find it.
    """
    kept: dict[str, Any] = _kept(config, config.model_dump(mode="json"), config.dump())
    return kept


def differences(saved: Any, config: Any, now: Any, path: str = "") -> Iterator[Change]:
    """What differs between the `resume_relevant_config` that was ``saved`` and that of ``config``, which is ``now``."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        if saved.get("type") != now.get("type"):  # another class reads the section, so that all of it is another
            yield Change(_under(path, "type"), saved.get("type"), now.get("type"))
            return
        for key in [*now, *(key for key in saved if key not in now)]:
            if key not in saved and isinstance(config, BaseModel) and _is_default(config, key):
                continue  # a key that is newer than the checkpoint
            if key not in now and isinstance(config, BaseModel):
                continue  # a key that is no more, or free by now
            below = getattr(config, key, None) if isinstance(config, BaseModel) else _NOTHING
            yield from differences(saved.get(key, _NOTHING), below, now.get(key, _NOTHING), _under(path, key))
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        several = isinstance(config, (list, tuple)) and len(config) == len(now)
        for n, (one, other) in enumerate(zip(saved, now, strict=True)):
            yield from differences(one, config[n] if several else None, other, _under(path, str(n)))
    elif saved != now:
        yield Change(path, saved, now)


def _kept(value: Any, plain: Any, masked: Any, name: str = "") -> Any:
    if isinstance(value, BaseModel) and isinstance(plain, dict):
        kept = {}
        for key, field in type(value).model_fields.items():
            free = next((mark for mark in field.metadata if isinstance(mark, ResumeSafe)), None)
            if key not in plain or (free is not None and not free.but):
                continue
            one = _kept(getattr(value, key), plain[key], masked[key], key)
            kept[key] = without_auto({k: v for k, v in one.items() if k in free.but}) if free is not None else one
        return kept
    if isinstance(plain, dict):
        values = value if isinstance(value, Mapping) else {}
        return {key: _kept(values.get(key), one, masked[key], key) for key, one in plain.items()}
    if isinstance(plain, list) and isinstance(value, (set, frozenset)):
        return sorted(masked, key=str)  # it has another order in every process
    if isinstance(plain, list):
        several = value if isinstance(value, (list, tuple)) and len(value) == len(plain) else [None] * len(plain)
        return [_kept(*three, name) for three in zip(several, plain, masked, strict=True)]
    if plain != masked:
        return f"{masked} #{hashlib.sha256(str(plain).encode()).hexdigest()[:4]}"
    if isinstance(value, Path) or (isinstance(plain, str) and name.endswith(_PATHS) and os.path.exists(plain)):
        return os.path.realpath(plain)
    return plain


def _is_default(config: BaseModel, key: str) -> bool:
    field = type(config).model_fields.get(key)
    return field is not None and getattr(config, key) == field.get_default(call_default_factory=True, validated_data={})


def _under(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _parts(key: str) -> list[str]:
    """Returns the keys of a path, each by the name that its section has for it."""
    return [canonical(part) for part in key.split(".")]


def _shown(value: Any) -> str:
    if value is _NOTHING:
        return "nothing"
    if isinstance(value, list):
        return f"{len(value)} entries" if len(value) != 1 else "1 entry"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
