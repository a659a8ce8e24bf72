"""A small run of grpo: a tiny model, seven questions, and a reward that it can learn."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from arctic_training.reward.reward import Completion, Reward
from tests.objectives import tiny_runs

ENDS = list("abcdefghijklmnopqrstuvwxyz")


class EvenTokens(Reward):
    """What an untrained model can learn: to generate letters with an even code."""

    name = "even_for_tests"

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        return [
            sum(ord(letter) % 2 == 0 for letter in one.generated) / max(len(one.generated), 1) for one in completions
        ]


def save_files(folder: Path) -> dict[str, Any]:
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    rows = [{"question": " ".join(words[: n + 1]), "answer": " " + words[n]} for n in range(7)]
    return tiny_runs.save_files(folder, "rows.jsonl", rows)


def make_trainer(folder: Path, **keys: Any) -> Any:
    defaults = {
        "type": "grpo",
        "rewards": ["even_for_tests", {"type": "length", "free": 0, "limit": 8, "weight": 0.3}],
        "num_generations": 3,
        "max_new_tokens": 5,
        "stop": ENDS,
        "beta": 0.2,
    }
    return tiny_runs.make_trainer(folder, save_files(folder), **{**defaults, **keys})


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    return tiny_runs.train(make_trainer(Path(folder), **keys))


def rewards_while_learning(folder: Path, **keys: Any) -> list[float]:
    """Returns the mean rewards of five steps each, of thirty steps that make even letters more likely."""
    trainer = make_trainer(
        folder,
        rewards="even_for_tests",
        optimizer={"type": "adamw", "lr": 1e-2, "weight_decay": 0},
        micro_batch_size=7,
        train_iters=30,
        beta=0.001,
        train_log_iter_interval=5,
        **keys,
    )
    trainer.train()
    trainer.close()
    return [json.loads(line)["reward"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def first_rollout(trainer: Any) -> Any:
    """Returns the first batch, with completions."""
    trainer.train_loader.seek(0, 0)
    batch = next(iter(trainer.train_loader))
    batch = {**batch, "num_items_in_batch": float(trainer.targets(batch))}
    return trainer.generate_rollouts([batch], [range(len(batch["prompts"]))], 0)[0]


def pairs(batch: Any) -> list[tuple[list[int], list[int]]]:
    """Returns the prompt and the tokens of every completion, read from the inputs of the model."""
    inputs, result = batch["inputs"], []
    ids, labels = inputs["input_ids"], inputs["labels"]
    if "cu_seq_lens_q" in inputs:
        bounds = inputs["cu_seq_lens_q"].tolist()
        parts = [(ids[0, a:b], labels[0, a:b]) for a, b in pairwise(bounds)]
    else:
        sizes = inputs["attention_mask"].sum(1).tolist()
        parts = [(row[:size], label[:size]) for row, label, size in zip(ids, labels, sizes, strict=True)]
    for row, label in parts[: len(batch["lengths"])]:
        start = int((label != -100).nonzero()[0])
        result.append((row[:start].tolist(), row[start:].tolist()))
    return result
