"""A window in which nothing is a target: its loss is 0, it moves no weight, and the other windows do not notice."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.objectives.sft import SFTTrainer
from tests import tiny


class LeavesOutLong(SFTDataFactory):
    """Learns nothing of a sample of more than 200 tokens."""

    name = "test_leaves_out_long"

    def collate(self, samples: list[Any]) -> Any:
        batch = super().collate(samples)
        if batch["input_ids"].shape[1] > 200:
            batch["labels"].fill_(-100)
        return batch


class Watching(SFTTrainer):
    """Notes what each update saw, and its weights."""

    def loss(self, batch: Any) -> torch.Tensor:
        value = super().loss(batch)
        weights = [parameter.detach().clone() for parameter in self.model.module.parameters()]
        self.noted: list[Any] = [*getattr(self, "noted", []), (self.window.targets, float(value.detach()), weights)]
        return value


@pytest.mark.fault(15)
def test_a_window_without_a_target_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    chats = tiny.chats(6)
    question = {"role": "user", "content": "one two three " * 40}
    chats[2] = {"messages": [question, {"role": "assistant", "content": "four"}]}
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    config = get_config(
        {
            "type": "sft",
            "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
            "skip_validation": True,
            "data": {
                "type": LeavesOutLong.name,
                "sources": [str(tmp_path / "chats.jsonl")],
                "max_length": 512,
                "cache_dir": str(tmp_path / "cache"),
            },
            "optimizer": {"type": "sgd", "lr": 0.1, "weight_decay": 0},
            "epochs": 1,
            "output_dir": str(tmp_path / "run"),
            "loss_log_interval": 0,
        }
    )
    trainer = Watching(config)
    trainer.train()
    final = [parameter.detach().clone() for parameter in trainer.model.module.parameters()]
    trainer.close()
    (masked,) = [n for n, (targets, *_) in enumerate(trainer.noted) if targets == 0]
    states = [weights for *_, weights in trainer.noted] + [final]
    moved = [any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(states)]
    assert moved == [n != masked for n in range(6)]
    assert [loss == 0 for _, loss, _ in trainer.noted] == [n == masked for n in range(6)]
    assert all(bool(weight.isfinite().all()) for weight in final)
