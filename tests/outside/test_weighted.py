"""The loss of the outside objective that reads a column is that of transformers, row by row, in every layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training import get_config
from arctic_training.registry import lookup
from tests import processes, tiny
from tests.outside.test_outside import FILES

LAYOUTS: list[tuple[int, dict[str, Any], dict[str, Any]]] = [
    (1, {"pack_samples": False}, {"micro_batch_size": 6}),
    (1, {"pack_samples": False}, {"micro_batch_size": 2, "gradient_accumulation_steps": 3}),
    (1, {"pack_samples": True, "div_length": 32}, {"micro_batch_size": 6}),
    (2, {"pack_samples": False}, {"micro_batch_size": 3, "deepspeed": {"zero_optimization": {"stage": 3}}}),
    (2, {"pack_samples": False}, {"micro_batch_size": 6, "sequence_parallel_size": 2}),
    (2, {"pack_samples": True, "div_length": 5}, {"micro_batch_size": 6, "sequence_parallel_size": 2}),
]


def write_rows(path: Path) -> list[dict[str, Any]]:
    """Writes six rows of tokens, some of whose labels are left out, with a weight each; returns them."""
    random, rows = np.random.default_rng(0), []
    for length in (3, 19, 8, 2, 30, 11):
        ids = random.integers(4, 300, length)
        labels = np.where(random.random(length) < 0.3, -100, ids)
        labels[-1] = ids[-1]
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "weight": float(random.normal())})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def first_loss(folder: str, number: int) -> float:
    """Trains a step on all rows, and returns the loss that the run logs."""
    _, data, settings = LAYOUTS[number]
    path = Path(folder)
    recipe = {
        "type": "outside_weighted",
        "code": str(FILES / "weighted.py"),
        "model": {"name_or_path": str(path / "model"), "dtype": "fp32"},
        "data": {
            "sources": [{"name_or_path": str(path / "rows.jsonl"), "process": False}],
            "extra_columns": ["weight"],
            "max_length": 40,
            "cache_dir": str(path / "cache"),
            **data,
        },
        "train_iters": 1,
        "output_dir": str(path / f"run_{number}"),
        "logger": {"level": "ERROR"},
        "checkpoint": [],
        **settings,
    }
    config = get_config(recipe)
    trainer: Any = lookup("trainer", config.type)(config)  # type: ignore[call-arg]
    trainer.train()
    trainer.close()
    lines = (path / f"run_{number}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return next(values["loss"] for values in map(json.loads, lines) if "loss" in values)


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_the_loss_is_that_of_transformers_row_by_row(number: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    rows = write_rows(tmp_path / "rows.jsonl")
    model = AutoModelForCausalLM.from_pretrained(tiny.save_model(tmp_path / "model"), dtype=torch.float32)
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            log_probs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"][1:]):
            if label != -100:
                total, count = total - row["weight"] * log_probs[place, label].item(), count + 1
    losses = processes.share(first_loss, LAYOUTS[number][0], str(tmp_path), number)
    assert losses == pytest.approx([total / count] * len(losses), rel=1e-5)
