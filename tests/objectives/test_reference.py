"""The reference that a recipe leaves out is the policy at the start, or the run is refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from arctic_training.errors.types import ModelError, RecipeError
from arctic_training.trainer.role_sections import _OTHER_INITS
from tests import tiny
from tests.objectives.dpo_runs import first_batch, make_trainer, save_files

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}


def adapter(kind: str, **more: Any) -> dict[str, Any]:
    return {"peft_type": kind, "target_modules": ["q_proj", "v_proj"], **more}


def learning(folder: Path, **keys: Any) -> Any:
    """A run of grpo on chats."""
    chats = tiny.save_chats(folder / "chats.jsonl", 4)
    rewards = {"rewards": [{"type": "length", "free": 0, "limit": 8}], "num_generations": 2, "max_new_tokens": 2}
    return make_trainer(folder, type="grpo", data={"sources": [str(chats)]}, **rewards, **keys)


@pytest.mark.parametrize(
    "peft_config",
    [
        LORA | {"use_dora": True, "modules_to_save": ["lm_head"]},
        LORA | {"trainable_token_indices": [5, 6]},
        LORA | {"init_lora_weights": "gaussian"},
        adapter("VERA"),
        adapter("OFT"),
        {"peft_type": "LN_TUNING"},
    ],
)
def test_the_first_margin_is_nothing(tmp_path: Path, peft_config: dict[str, Any]) -> None:
    trainer = make_trainer(tmp_path, model={"peft_config": peft_config}, micro_batch_size=7)
    assert trainer.loss(first_batch(trainer)).item() == pytest.approx(math.log(2), abs=1e-6)
    trainer.close()


@pytest.mark.parametrize(
    "peft_config",
    [adapter("C3A", block_size=16), adapter("FOURIERFT", n_frequency=50), adapter("VERA", init_weights=False)],
)
@pytest.mark.parametrize("objective", [make_trainer, learning])
def test_an_adapter_that_starts_as_more_than_nothing_is_refused(
    tmp_path: Path, objective: Any, peft_config: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=r"^ref_model: specify one; .* initial output of its adapter is not zero"):
        objective(tmp_path, model={"peft_config": peft_config})


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "OLoRA", "corda", "loftq", False])
@pytest.mark.parametrize("objective", [make_trainer, learning])
def test_a_start_that_changes_the_policy_below_is_refused_by_the_recipe(
    tmp_path: Path, objective: Any, start: Any
) -> None:
    with pytest.raises(RecipeError, match="ref_model: specify one; with init_lora_weights"):
        objective(tmp_path, model={"peft_config": LORA | {"init_lora_weights": start}})


def test_every_start_of_lora_that_is_more_than_nothing_is_known() -> None:
    """By what each does to one layer, as far as it needs no data and no library that is not here."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn

    for start in (True, "gaussian", "orthogonal", "mica", "pissa", "pissa_niter_2", "olora"):
        model: Any = nn.Sequential(nn.Linear(8, 8))
        row = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
        before = model(row)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=start))  # type: ignore[arg-type]
        same = torch.allclose(model(row), before, atol=1e-6)
        with model.disable_adapter():
            same = same and torch.allclose(model(row), before, atol=1e-6)
        assert same != str(start).startswith(_OTHER_INITS), start


def test_a_reference_of_ones_own_may_be_another(tmp_path: Path) -> None:
    model = {"peft_config": LORA | {"init_lora_weights": "pissa"}}
    trainer = make_trainer(tmp_path, model=model, ref_model=save_files(tmp_path)["model"], micro_batch_size=7)
    assert trainer.loss(first_batch(trainer)).item() == pytest.approx(math.log(2), abs=1e-5)
    trainer.close()


def confident(folder: Path) -> None:
    """Gives the model of `save_files` large logits, where rounding in 16 bits moves a log-probability by a tenth."""
    import torch
    from transformers import AutoModelForCausalLM

    save_files(folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    model.save_pretrained(folder / "model")


@pytest.mark.parametrize("peft_config", [LORA | {"init_lora_weights": "orthogonal"}, adapter("HRA")])
def test_an_adapter_that_starts_as_rounding_alone_trains(tmp_path: Path, peft_config: dict[str, Any]) -> None:
    confident(tmp_path)
    make_trainer(
        tmp_path, model={"peft_config": peft_config | {"target_modules": "all-linear"}, "dtype": "bf16"}
    ).close()


def test_an_adapter_that_starts_as_more_than_rounding_is_refused(tmp_path: Path) -> None:
    confident(tmp_path)
    with pytest.raises(ModelError, match="initial output of its adapter is not zero"):
        make_trainer(tmp_path, model={"peft_config": adapter("C3A", block_size=16), "dtype": "bf16"})


def test_a_reference_takes_the_name_and_the_precision_that_it_leaves_out_from_the_policy(tmp_path: Path) -> None:
    name = {"name_or_path": save_files(tmp_path)["model"]["name_or_path"]}
    for section in (name, {"attn_implementation": "eager"}):
        trainer = make_trainer(tmp_path, ref_model=section, micro_batch_size=7)
        assert trainer.loss(first_batch(trainer)).item() == pytest.approx(math.log(2), abs=1e-6)
        trainer.close()
