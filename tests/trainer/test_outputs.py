"""What a program gets of a trainer: completions and a folder with the model, equal to transformers' own."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from arctic_training import CausalTrainer, SFTTrainer, TensorClassifierTrainer, get_config
from arctic_training.errors.types import CheckpointError, InputError, RecipeError
from tests import processes, tiny

CHAT = [{"role": "user", "content": "one and two"}]
PROMPTS: list[Any] = [CHAT, "three and four", "nine"]


def build(
    folder: Path, model: Path, section: Mapping[str, Any] = MappingProxyType({}), *, passes: bool = False, **more: Any
) -> SFTTrainer:
    """A trainer of the model in a folder, which is named or passed."""
    from transformers import AutoModelForCausalLM

    recipe = {
        "model": {"name_or_path": str(model), "dtype": "fp32", **section},
        "data": {"max_length": 400},
        "optimizer": {"lr": 1e-2},
        "output_dir": str(folder / "run"),
        "loss_log_interval": 0,
        "logger": {"level": "ERROR"},
        **more,
    }
    objects: dict[str, Any] = {"train_dataset": tiny.chats(4)}
    if passes:
        objects["model"] = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        del recipe["model"]
    return SFTTrainer(get_config(recipe), **objects)


def completed_by_transformers(folder: Path) -> list[str]:
    """The greedy completions of the prompts, one at a time, by the model in a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in PROMPTS:
        text = (
            prompt
            if isinstance(prompt, str)
            else tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        )
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=8, do_sample=False)
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def train_and_save(folder: Path, model: Path, *, passes: bool = False, **more: Any) -> list[str]:
    trainer = build(folder, model, passes=passes, **more)
    before = trainer.generate(PROMPTS, max_new_tokens=8)
    trainer.train()
    texts = trainer.generate(PROMPTS, max_new_tokens=8, batch_size=2)
    assert texts != before
    assert trainer.save_model(folder / "deep" / "saved") == folder / "deep" / "saved"
    assert len({one.stat().st_mode for one in (folder / "deep" / "saved").iterdir()}) == 1
    trainer.close()
    return texts


def test_it_generates_and_saves_what_transformers_loads(tmp_path: Path, tiny_model: Path) -> None:
    texts = train_and_save(tmp_path, tiny_model)
    assert texts == completed_by_transformers(tmp_path / "deep" / "saved")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["saved"]


def test_it_does_at_stage_3_on_two_processes(tmp_path: Path, tiny_model: Path) -> None:
    alone = train_and_save(tmp_path / "alone", tiny_model, micro_batch_size=2)
    more: dict[str, Any] = {"deepspeed": {"zero_optimization": {"stage": 3}}, "passes": True}
    texts = processes.share(train_and_save, 2, tmp_path, tiny_model, **more)
    assert alone == texts[0] == texts[1] == completed_by_transformers(tmp_path / "deep" / "saved")


def test_an_adapter_is_merged_on_request(tmp_path: Path, tiny_model: Path) -> None:
    peft_config = {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}
    trainer = build(tmp_path, tiny_model, {"peft_config": peft_config})
    trainer.train()
    texts = trainer.generate(PROMPTS, max_new_tokens=8)
    trainer.save_model(tmp_path / "merged", merge_adapter=True)
    trainer.save_model(tmp_path / "adapter")
    trainer.close()
    assert texts == completed_by_transformers(tmp_path / "merged")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 2


def test_generating_leaves_no_trace_and_draws_by_its_seed(tmp_path: Path, tiny_model: Path) -> None:
    trainer = build(tmp_path, tiny_model)
    state = torch.get_rng_state()
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 8}
    first = trainer.generate(PROMPTS, seed=1, **options)
    assert first == trainer.generate(PROMPTS, seed=1, batch_size=1, **options)
    assert first != trainer.generate(PROMPTS, seed=2, **options)
    assert first[:1] == trainer.generate(CHAT, seed=1, **options)
    assert trainer.generate([]) == [] and len(trainer.generate("one")) == 1
    assert torch.equal(state, torch.get_rng_state()) and trainer.model.module.training
    trainer.close()


def test_what_cannot_be_generated_or_saved_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    trainer = build(tmp_path, tiny_model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="full exists and is no empty folder"):
        trainer.save_model(tmp_path / "full")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        trainer.save_model(tmp_path / "file" / "below")
    with pytest.raises(InputError, match=r"generate: temperatur: unknown; did you mean 'temperature'\?"):
        trainer.generate("one", temperatur=2)
    trainer.close()
    for method in (trainer.generate, trainer.save_model):
        with pytest.raises(InputError, match="the trainer is closed"):
            method("x")
    config = get_config({"type": "tensor_classifier", "output_dir": str(tmp_path / "tensors")})
    points = torch.utils.data.TensorDataset(torch.randn(4, 2), torch.arange(4) % 2)
    other = TensorClassifierTrainer(config, model=torch.nn.Linear(2, 2), train_dataset=points)
    with pytest.raises(InputError, match="generate needs a model that generates; Linear does not"):
        other.generate("one")
    with pytest.raises(RecipeError, match="cannot save model, a Linear"):
        other.save_model(tmp_path / "linear")
    other.close()
    assert not (tmp_path / "linear").exists()


def test_a_chat_needs_a_template(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    recipe = {"type": "causal", "model": {"name_or_path": str(tiny_model)}, "output_dir": str(tmp_path / "run")}
    rows = [{"text": "one two three " * 20}] * 4
    config = get_config({**recipe, "data": {"max_length": 32}})
    trainer = CausalTrainer(config, tokenizer=tokenizer, train_dataset=rows)
    with pytest.raises(InputError, match="generate: the chat template refuses a prompt"):
        trainer.generate(CHAT)
    trainer.close()
