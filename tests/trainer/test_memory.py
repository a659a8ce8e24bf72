"""A run that surely cannot fit is refused before its data are read, and `plan` says which run that is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.sources.base import DataSource
from arctic_training.errors.types import ModelError
from arctic_training.objectives.sft import SFTTrainer
from arctic_training.trainer.assembly import build_tokenizer
from arctic_training.trainer.plan import Machine, Plan, make_plan
from arctic_training.trainer.validation import unstarted


class NeverRead(DataSource):
    """Fails the test that reads it."""

    name = "never_read_for_tests"

    def load(self, config: Any, split: str) -> Any:
        pytest.fail("data were read")


class OnGpu(SFTTrainer):
    name = "on_gpu_for_tests"
    device = torch.device("cuda")


def recipe(folder: Path, **keys: Any) -> dict[str, Any]:
    section = {"name_or_path": str(folder), "dtype": "bf16", **keys.pop("model", {})}
    data = {"sources": ["some/rows"], "max_length": 512, **keys.pop("data", {})}
    return {"type": "sft", "model": section, "data": data, "train_iters": 2, **keys}


def give(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, memory))


def refusal(config: TrainerConfig) -> str:
    """Returns the error of a run on a GPU before its data are read; nothing where it goes on."""
    trainer = unstarted(config)
    type(trainer).device = torch.device("cuda")  # type: ignore[assignment, method-assign]
    try:
        build_tokenizer(trainer)
    except ModelError as error:
        return str(error)
    return ""


def planned(config: TrainerConfig, memory: int) -> Plan:
    return make_plan(config, Machine(device_memory=memory))


LORA = {"peft_type": "lora", "r": 4, "target_modules": ["q_proj"]}
PAIRS = {"type": "dpo", "data": {"type": "dpo"}}
RECIPES: dict[str, dict[str, Any]] = {
    "rows of any length": {},
    "packed rows": {"data": {"pack_samples": True}, "micro_batch_size": 4},
    "full rows": {"data": {"pack_samples": True, "always_max_length": True}, "micro_batch_size": 4},
    "full rows, layers kept": {
        "data": {"pack_samples": True, "pad_to": "max_length"},
        "micro_batch_size": 4,
        "model": {"activation_checkpointing": False},
    },
    "no max_length": {"data": {"max_length": None, "pack_samples": True, "pad_to": "max_length"}},
    "fp32": {"model": {"dtype": "fp32"}},
    "an adapter": {"model": {"peft_config": LORA}},
    "stage 2, accumulated": {"deepspeed": {"zero_optimization": {"stage": 2}}, "gradient_accumulation_steps": 2},
    "offloaded": {
        "deepspeed": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        "optimizer": {"type": "cpu_adam"},
    },
    "a reference": PAIRS,
    "a reference of its own stage": {**PAIRS, "reference_model_deepspeed": {"zero_optimization": {"stage": 3}}},
    "a reference used before training": {**PAIRS, "precompute_ref_log_probs": True},
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_plan_tells_which_run_is_refused(name: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = get_config(recipe(tiny_model, **RECIPES[name]))
    roomy = planned(config, 2**40)
    least, most = roomy.surely_needed, roomy.placement.estimate.total
    assert 0 < least <= most
    seen = set()
    for memory in (least // 2, least - 1, least, most, int(most / 0.85) + 1, 2 * most):
        give(memory, monkeypatch)
        plan, message = planned(config, memory), refusal(config)
        assert bool(message) == plan.is_refused == (memory < least), memory
        assert not (plan.fits and message)
        if message:
            fits = [one.change for one in plan.alternatives]
            assert message.endswith(
                f"what would fit: {'; '.join(fits)}" if fits else "nothing that is known here would fit"
            )
        assert ("and a micro-batch" in message) == (message != "" and name.startswith("full rows"))
        seen.add((plan.fits, plan.is_refused))
    assert seen == {(False, True), (False, False), (True, False)}


def test_state_is_what_the_optimizer_and_all_models_hold(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of a weight in bf16 at stage 1: 2 and its gradient 2, copies 4 and 6, master weights 4, moments of 4."""
    short: dict[str, Any] = {"data": {"max_length": 8}}
    pairs = {**PAIRS, "data": {"type": "dpo", "max_length": 8}}
    config = get_config(recipe(tiny_model, **short))
    weights = planned(config, 2**40).models[0].footprint.parameters
    lion = get_config(recipe(tiny_model, optimizer={"type": "lion"}, **short))
    dpo = get_config(recipe(tiny_model, **pairs))
    before = get_config(recipe(tiny_model, **pairs, precompute_ref_log_probs=True))
    for one, each in ((config, 26), (lion, 22), (dpo, 28), (before, 26)):
        assert planned(one, 2**40).surely_needed == each * weights
    give(23 * weights, monkeypatch)
    assert refusal(lion) == ""
    assert refusal(dpo).startswith("model: weights, gradients and optimizer of model and ref_model take 0.0 GiB by")
    assert "what would fit: " in refusal(config) and "adafactor" in refusal(config)


def test_a_run_that_cannot_fit_is_refused_before_its_data_are_read(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(1000, monkeypatch)
    data = {"sources": [{"type": "never_read_for_tests"}]}
    config = get_config(recipe(tiny_model, data=data, type="on_gpu_for_tests", output_dir=str(tmp_path / "run")))
    with pytest.raises(ModelError, match=r"model: weights, gradients and optimizer take 0.0 GiB by an estimate"):
        OnGpu(config)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").rglob("metrics.jsonl"))
    give(2**40, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="data were read"):  # the source is one that a run reads
        OnGpu(config)


def test_where_less_is_kept_in_fp32_nothing_is_sure(tiny_model: Path) -> None:
    config = get_config(
        recipe(tiny_model, deepspeed={"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}})
    )
    plan = planned(config, 1000)
    assert (plan.fits, plan.is_refused, plan.surely_needed) == (False, False, 0)
