"""Small runs that leave checkpoints of both types, and what their models computed at the end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arctic_training import SFTTrainer, get_config
from tests import tiny

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj", "down_proj"]}
IDS = torch.arange(40, 72).view(2, 16)
PROMPT = [{"role": "user", "content": "what is the sum of one and two"}]


@dataclass(frozen=True)
class TrainedRun:
    """A run that is over."""

    folder: Path
    """The folder of its recipe."""
    run_dir: Path
    logits: torch.Tensor
    """Of the trained model for `IDS`, float32 ``[2, 16, vocabulary]``."""
    completion: list[int]
    """The greedy tokens of the trained model after `PROMPT`."""
    metrics: dict[str, float]
    """Of the last evaluation."""

    def checkpoint(self, kind: str) -> Path:
        return self.run_dir / "checkpoints" / kind / "step_4"


def recipe(folder: Path, *, lora: bool, **keys: Any) -> dict[str, Any]:
    """A recipe of four steps that change a tiny model by far, with an evaluation at the end."""
    model: dict[str, Any] = {"name_or_path": str(folder / "model"), "dtype": "fp32"}
    return {
        "model": model | ({"peft_config": LORA} if lora else {}),
        "data": {"sources": [f"{folder}/chats.jsonl"], "eval_sources": [f"{folder}/held_out.jsonl"], "max_length": 400},
        "optimizer": {"lr": 3e-3, "weight_decay": 0.0},
        "scheduler": {"name": "constant"},
        "micro_batch_size": 4,
        "train_iters": 4,
        "evaluate_last": True,
        "evaluators": [{"type": "generate", "max_new_tokens": 6}],
        "checkpoint": [{"type": kind, "save_end_of_training": True} for kind in ("deepspeed", "huggingface")],
        "output_dir": str(folder / "run"),
        "loss_log_interval": 0,
        **keys,
    }


def make_files(folder: Path, **model: Any) -> None:
    tiny.save_model(folder / "model", **model)
    tiny.save_chats(folder / "chats.jsonl", 16)
    tiny.save_chats(folder / "held_out.jsonl", 3, seed=1)
    tiny.save_chats(folder / "test.jsonl", 4, seed=2)


def train(folder: Path, *, lora: bool, **keys: Any) -> TrainedRun:
    """Trains `recipe` in ``folder`` and returns the run with what its model computes."""
    make_files(folder)
    trainer = SFTTrainer(get_config(recipe(folder, lora=lora, **keys)))
    seen: dict[str, float] = {}
    trainer.callbacks.append(("post-evaluate", lambda _, values: seen.update(values)))
    trainer.train()
    model, tokenizer = trainer.model.module.eval(), trainer.tokenizer
    with torch.no_grad():
        logits = model(input_ids=IDS).logits.float()
        text = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        out = model.generate(**prompt, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)
    completion = out[0, prompt["input_ids"].shape[1] :].tolist()
    run_dir = trainer.run_dir
    trainer.close()
    return TrainedRun(folder, run_dir, logits, completion, seen)


def complete(model: Any, tokenizer: Any) -> list[int]:
    """The greedy tokens of a model after `PROMPT`, by transformers alone."""
    text = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**prompt, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)
    completion: list[int] = out[0, prompt["input_ids"].shape[1] :].tolist()
    return completion
