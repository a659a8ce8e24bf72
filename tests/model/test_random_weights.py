"""Weights that are drawn: those of transformers alone for the seed, at every ZeRO stage, on any processes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import SFTTrainer, get_config
from arctic_training.distributed import process_group
from arctic_training.engine.zero import full_parameter
from arctic_training.state import seed
from tests import processes, tiny

SHAPE = {"hidden_size": 36, "intermediate_size": 20, "num_attention_heads": 6, "num_key_value_heads": 3}


def begin(folder: str, stage: int, **model: Any) -> tuple[dict[str, torch.Tensor], float]:
    """Returns the full weights at the start of a run, and its loss over the evaluation set."""
    root = Path(folder)
    recipe = {
        "type": "sft",
        "output_dir": str(root / f"run_{process_group.world_size()}_{stage}"),
        "model": {"name_or_path": str(root / "model"), "dtype": "fp32", **model},
        "data": {
            "sources": [str(root / "chats.jsonl")],
            "eval_sources": [str(root / "chats.jsonl")],
            "max_length": 256,
            "cache_dir": str(root / "cache"),
        },
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "logger": {"level": "ERROR"},
        "seed": 5,
    }
    trainer = SFTTrainer(get_config(recipe))
    weights = {name: full_parameter(one).cpu() for name, one in trainer.model.module.named_parameters()}
    loss = trainer.evaluate()["loss/eval"]
    trainer.close()
    return weights, loss


def everywhere(folder: str, stages: list[int], **model: Any) -> list[tuple[dict[str, torch.Tensor], float]]:
    process_group.init_process_group()
    return [begin(folder, stage, **model) for stage in stages]


def drawn_by_transformers(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():
        seed(5)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"), dtype=torch.float32)
    return {name: one.detach() for name, one in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_are_those_that_transformers_draws(tied: bool, tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model", **SHAPE, tie_word_embeddings=tied)
    tiny.save_chats(tmp_path / "chats.jsonl", 4)
    expected, losses = drawn_by_transformers(tmp_path), []
    runs = processes.share(everywhere, 1, str(tmp_path), [0, 2, 3], random_weights=True)
    for actual in (*runs, *processes.share(everywhere, 2, str(tmp_path), [1, 3], random_weights=True)):
        for weights, loss in actual:
            assert weights.keys() == expected.keys()
            assert all(torch.equal(weights[name], expected[name]) for name in expected)
            losses.append(loss)
    assert losses == pytest.approx(losses[:1] * 7, rel=1e-6)


def test_what_is_drawn_beside_them_is_the_same_too(tmp_path: Path) -> None:
    """The rows of new tokens, and an adapter."""
    tiny.save_model(tmp_path / "model", **SHAPE, vocab_size=317)
    tiny.save_chats(tmp_path / "chats.jsonl", 4)
    model = {
        "random_weights": True,
        "resize_vocabulary": True,
        "peft_config": {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]},
    }
    ((first, loss), *others), *_ = processes.share(everywhere, 1, str(tmp_path), [0, 3], **model)
    assert any("lora_A" in name for name in first)
    for actual in processes.share(everywhere, 2, str(tmp_path), [0, 3], **model):
        others += actual
    for weights, value in others:
        assert all(torch.equal(weights[name], first[name]) for name in first)
        assert value == pytest.approx(loss, rel=1e-6)
