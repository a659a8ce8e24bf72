"""What the headers of a folder's safetensors files tell of its weights, without reading them."""

import json
from pathlib import Path
from typing import Any

from arctic_training.errors.types import ModelError

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST = 100_000_000
"""Bytes of a header, by the format's own rule."""

Shapes = dict[str, list[int]]
"""Of every weight, by name."""


def shapes(folder: Path) -> Shapes:
    """Empty for a folder without such files. Raises `ModelError` when one is missing, damaged or cut off."""
    if (folder / _ONE).is_file():
        return _header(folder / _ONE)
    if not (folder / _INDEX).is_file():
        return {}
    found: Shapes = {}
    for name in _named(folder / _INDEX):
        if not (folder / name).is_file():
            raise ModelError(f"{name} is missing, which {_INDEX} names; some of the weights are in it")
        found |= _header(folder / name)
    return found


def _named(index: Path) -> list[str]:
    try:
        told = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({str(name) for name in told.values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index.name} is damaged: it is no list of the files that hold the weights") from None


def _header(path: Path) -> Shapes:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ModelError(f"{path.name} is a pointer of Git LFS; `git lfs pull` fetches the weights themselves")
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, _LONGEST):
            raise ModelError(f"{path.name} is damaged or cut off: it is too short for its header")
        try:
            told: dict[str, Any] = json.loads(file.read(length))
            told.pop("__metadata__", None)
            end = 8 + length + max((one["data_offsets"][1] for one in told.values()), default=0)
            found = {name: list(one["shape"]) for name, one in told.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ModelError(f"{path.name} is damaged: its header cannot be read") from None
    if size != end:
        raise ModelError(f"{path.name} is cut off, or was altered: it has {size:,} bytes instead of {end:,}")
    return found
