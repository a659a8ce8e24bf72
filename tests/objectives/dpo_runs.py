"""A small run of dpo: a tiny model, and seven pairs of very different lengths."""

from pathlib import Path
from typing import Any

import torch

from tests.objectives import tiny_runs

SIZES = [(2, 9), (11, 1), (4, 4), (1, 12), (6, 3), (8, 2), (3, 7)]
"""Words of the chosen and of the rejected completion: lopsided, so that a mean of means would be wrong."""


def save_files(folder: Path) -> dict[str, Any]:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "add", "sum"]
    rows = [
        {
            "prompt": " ".join(words[: n + 1]),
            "chosen": " " + " ".join(words[-a:]),
            "rejected": " " + " ".join(words[:b]),
        }
        for n, (a, b) in enumerate(SIZES)
    ]
    return tiny_runs.save_files(folder, "pairs.jsonl", rows)


def make_trainer(folder: Path, **keys: Any) -> Any:
    return tiny_runs.make_trainer(folder, save_files(folder), **{"type": "dpo", **keys})


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    return tiny_runs.train(make_trainer(Path(folder), **keys))


def first_batch(trainer: Any) -> Any:
    trainer.train_loader.seek(0, 0)
    batch = next(iter(trainer.train_loader))
    return {**batch, "num_items_in_batch": float(trainer.targets(batch))}
