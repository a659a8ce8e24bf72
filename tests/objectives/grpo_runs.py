"""A small run of grpo: a tiny model, seven questions, and a reward that it can learn."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from arctic_training import get_config
from arctic_training.registry import lookup
from arctic_training.reward.reward import Answer, Reward
from tests import tiny

ENDS = list("abcdefghijklmnopqrstuvwxyz")


class EvenTokens(Reward):
    """What a model that knows nothing can learn: to say letters that are even."""

    name = "even_for_tests"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [sum(ord(letter) % 2 == 0 for letter in one.generated) / max(len(one.generated), 1) for one in answers]


def files(folder: Path) -> dict[str, Any]:
    if not (folder / "model").exists():
        tiny.save_model(folder / "model")
        words = ["one", "two", "three", "four", "five", "six", "seven"]
        rows = [{"question": " ".join(words[: n + 1]), "answer": " " + words[n]} for n in range(7)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name_or_path": str(folder / "model"), "dtype": "fp32"},
        "data": {"sources": [str(folder / "rows.jsonl")], "max_length": 128, "cache_dir": str(folder / "cache")},
    }


def made(folder: Path, **keys: Any) -> Any:
    base = files(folder)
    base["data"] |= keys.pop("data", {})
    base["model"] |= keys.pop("model", {})
    recipe = {
        "type": "grpo",
        "rewards": ["even_for_tests", {"type": "length", "free": 0, "limit": 8, "weight": 0.3}],
        "num_generations": 3,
        "max_new_tokens": 5,
        "stop": ENDS,
        "beta": 0.2,
        "optimizer": {"type": "sgd", "lr": 0.5},
        "deepspeed": {"gradient_clipping": 0},
        "scheduler": {"warmup_ratio": 0},
        "train_iters": 3,
        "loss_log_interval": 0,
        "output_dir": str(folder / "run"),
        "logger": {"level": "ERROR"},
        **base,
        **keys,
    }
    config = get_config(recipe)
    return lookup("trainer", config.type)(config)  # type: ignore[call-arg]


def trained(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    from arctic_training.engine.zero import full_parameter

    trainer = made(Path(folder), **keys)
    trainer.train()
    found = {name: full_parameter(one).clone() for name, one in trainer.model.module.named_parameters()}
    trainer.close()
    return found


def answered(trainer: Any) -> Any:
    """The first batch, with its answers."""
    trainer.train_loader.seek(0, 0)
    batch = next(iter(trainer.train_loader))
    batch = {**batch, "num_items_in_batch": float(trainer.targets(batch))}
    return trainer.generate_rollouts([batch], [range(len(batch["prompts"]))], 0)[0]
