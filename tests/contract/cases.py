"""For each trainer a recipe that two epochs of a few updates make, on tiny models; with randomness wherever there can be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import tiny

Recipe = dict[str, Any]
_FP32 = {"dtype": "fp32"}


def _language(folder: Path, rows: Path, **data: Any) -> Recipe:
    model = folder / "model"
    if not model.exists():
        tiny.save_model(model)
    return {
        "model": {"name_or_path": str(model), **_FP32, "hf_config_kwargs": {"attention_dropout": 0.1}},
        "data": {"sources": [str(rows)], "max_length": 96, "cache_dir": str(folder / "cache"), **data},
        "optimizer": {"lr": 1e-3},
        "micro_batch_size": 2,
    }


def sft(folder: Path) -> Recipe:
    return _language(folder, tiny.save_chats(folder / "chats.jsonl", 10))


def causal(folder: Path) -> Recipe:
    rows = folder / "text.jsonl"
    texts = (" ".join(turn["content"] for turn in row["messages"]) for row in tiny.chats(12, seed=3))
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return _language(folder, rows)


def dpo(folder: Path) -> Recipe:
    rows = folder / "pairs.jsonl"
    lines = []
    for good, bad in zip(tiny.chats(10, seed=4), tiny.chats(10, seed=5), strict=True):
        prompt, chosen, rejected = good["messages"][0], good["messages"][1], bad["messages"][1]
        lines.append(json.dumps({"chosen": [prompt, chosen], "rejected": [prompt, rejected]}) + "\n")
    rows.write_text("".join(lines), encoding="utf-8")
    return _language(folder, rows)


def gan(folder: Path) -> Recipe:
    mlp = {"type": "mlp", "dtype": "fp32"}
    return {
        "model": {**mlp, "sizes": [2, 8, 2]},
        "discriminator": {**mlp, "sizes": [2, 8, 1]},
        "data": {"sources": [{"type": "gaussian_ring", "count": 20}]},
        "optimizer": {"lr": 1e-3},
        "discriminator_optimizer": {"lr": 1e-3},
        "micro_batch_size": 4,
        "loss": "hinge",
    }


CASES: dict[str, Callable[[Path], Recipe]] = {"sft": sft, "causal": causal, "dpo": dpo, "gan": gan}


def recipe(name: str, folder: Path, **more: Any) -> Recipe:
    """The case of the trainer ``name``; its files go to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    quiet = {"loss_log_interval": 0, "logger": {"level": "ERROR"}}
    return {"type": name, "epochs": 2, "seed": 7, **quiet, **CASES[name](folder), **more}
