"""A small run of kto: a tiny model, and seven rated completions of very different lengths."""

from pathlib import Path
from typing import Any

import torch

from tests.objectives import tiny_runs

SIZES = [2, 11, 4, 1, 6, 8, 3]
"""Words of the completions."""
LIKED = [True, False, True, True, False, False, True]


def save_files(folder: Path) -> dict[str, Any]:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "add", "sum"]
    rows = [
        {"prompt": " ".join(words[: n + 1]), "completion": " " + " ".join(words[-size:]), "label": liked}
        for n, (size, liked) in enumerate(zip(SIZES, LIKED, strict=True))
    ]
    return tiny_runs.save_files(folder, "rated.jsonl", rows)


def make_trainer(folder: Path, **keys: Any) -> Any:
    return tiny_runs.make_trainer(folder, save_files(folder), **{"type": "kto", **keys})


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    return tiny_runs.train(make_trainer(Path(folder), **keys))
