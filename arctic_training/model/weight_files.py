"""The weight files of a folder: shapes from the headers of safetensors files, and pickles that hold tensors only."""

import json
import zipfile
from pathlib import Path

import torch

from arctic_training.errors.types import ModelError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"

Shapes = dict[str, list[int]]
"""The shape of every weight, by name."""


def read_shapes(folder: Path) -> Shapes:
    """Returns the shapes of all weights in ``folder``; empty for a folder without safetensors files.

    Raises `ModelError` when one of the files is missing, damaged or cut off.
    """
    if (folder / _SINGLE).is_file():
        return _read_header(folder / _SINGLE)
    if not (folder / _INDEX).is_file():
        return {}
    shapes: Shapes = {}
    for name in _files_of_index(folder / _INDEX):
        if not (folder / name).is_file():
            raise ModelError(f"{name} is missing, which {_INDEX} names; some of the weights are in it")
        shapes |= _read_header(folder / name)
    return shapes


def load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a ``.bin`` file by name, without their values where the file is no older than torch 1.6.

    Raises `pickle.UnpicklingError` for a file that holds more than tensors, of which nothing is run.
    """
    tensors: dict[str, torch.Tensor] = torch.load(
        path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path)
    )
    return tensors


def _files_of_index(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index.name} is damaged: it is no list of the files that hold the weights") from None


def _read_header(path: Path) -> Shapes:
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        if file.read(8) == b"version ":
            raise ModelError(f"{path.name} is a pointer of Git LFS; `git lfs pull` fetches the weights themselves")
    try:
        with safe_open(path, "np") as weights:
            names = weights.keys()
            return {name: list(weights.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        text = str(error)
        if "header too" in text:
            raise ModelError(f"{path.name} is damaged or cut off: it is too short for its header") from error
        if "not fully covered" in text:
            raise ModelError(f"{path.name} is cut off, or was altered: its size does not fit its header") from error
        raise ModelError(f"{path.name} is damaged: its header cannot be read") from error
