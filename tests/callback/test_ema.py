"""The moving average of weights: its formula, its memory, and that it leaves the network alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from arctic_training import SFTTrainer, get_config
from arctic_training.callback.ema import EMA, EMAConfig
from arctic_training.distributed import process_group
from arctic_training.engine.zero import full_parameter
from arctic_training.errors.types import RecipeError
from tests import processes
from tests.contract import cases


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def run(module: nn.Module) -> Any:
    engines = {"model": SimpleNamespace(module=module)}
    return SimpleNamespace(
        engines=engines, trainable_engines=engines, trained_roles=[*engines], config=SimpleNamespace(deepspeed={})
    )


def started(module: nn.Module, **options: Any) -> tuple[EMA, Any]:
    ema, trainer = EMA(EMAConfig(type="ema", **options)), run(module)
    ema.post_init(trainer)
    return ema, trainer


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=6), st.floats(0, 0.999), st.booleans())
def test_formula(values: list[float], decay: float, warmup: bool) -> None:
    module = nn.Linear(1, 1, bias=False)
    expected = module.weight.item()
    ema, trainer = started(module, decay=decay, warmup=warmup)
    for t, value in enumerate(values):
        nn.init.constant_(module.weight, value)
        ema.pre_after_update(trainer)
        keep = min(decay, (1 + t) / (10 + t)) if warmup else decay
        expected = keep * expected + (1 - keep) * value
    assert ema.weights["weight"].item() == pytest.approx(expected, abs=1e-5)
    assert module.weight.item() == values[-1]


def test_buffers_are_averaged_and_counters_follow() -> None:
    module = network()
    ema, trainer = started(module, decay=0.5, warmup=False)
    module(torch.randn(8, 2))
    ema.pre_after_update(trainer)
    assert torch.allclose(ema.weights["1.running_mean"], module[1].running_mean / 2)
    assert ema.weights["1.num_batches_tracked"] == 1


def test_goes_on_from_what_it_told() -> None:
    torch.manual_seed(0)
    one, other = network(), network()
    ema, trainer = started(one)
    ema.pre_after_update(trainer)
    state = {"steps": ema.state_dict()["steps"], "weights": {n: w.clone() for n, w in ema.weights.items()}}
    resumed = EMA(EMAConfig(type="ema"))
    resumed.load_state_dict(state)
    other.load_state_dict(one.state_dict())
    resumed.post_init(run(other))
    nn.init.ones_(one[0].weight)
    nn.init.ones_(other[0].weight)
    ema.pre_after_update(trainer)
    resumed.pre_after_update(run(other))
    assert resumed.steps == ema.steps == 2
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in ema.weights.items())


def test_averages_bf16_weights_in_fp32() -> None:
    module = nn.Linear(4, 4).bfloat16()
    ema, trainer = started(module, decay=0.999, warmup=False)
    before = ema.weights["weight"].clone()
    with torch.no_grad():
        module.weight += 1
    ema.pre_after_update(trainer)
    assert torch.allclose(ema.weights["weight"], before + 0.001 * (module.weight.float() - before))


def test_refuses_a_network_that_is_not_trained() -> None:
    with pytest.raises(RecipeError, match=r"'critic' is not trained here; there are: model"):
        EMA(EMAConfig(type="ema", role="critic")).check_recipe(run(network()))


def test_refuses_weights_that_are_not_in_memory() -> None:
    trainer = run(network())
    trainer.config.deepspeed = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}
    with pytest.raises(RecipeError, match=r"callbacks.ema: .*offload_param.device: nvme"):
        EMA(EMAConfig(type="ema")).check_recipe(trainer)


def average_in_use(folder: str, stage: int) -> tuple[dict[str, float], dict[str, float], dict[str, torch.Tensor]]:
    """Trains with an average; returns the last evaluation, one of the weights themselves, and the average."""
    recipe = cases.recipe("sft", Path(folder), train_iters=3, evaluate_last=True, output_dir=f"{folder}/run{stage}")
    recipe["optimizer"]["lr"] = 0.05
    recipe["data"]["eval_sources"] = recipe["data"]["sources"]
    zero = {"stage": stage, "stage3_param_persistence_threshold": 2000}
    recipe |= {
        "callbacks": [{"type": "ema", "decay": 0.5, "warmup": False, "evaluate": True, "export": True}],
        "checkpoint": {"type": "huggingface", "save_end_of_training": True, "output_dir": f"{folder}/{stage}"},
        "deepspeed": {"zero_optimization": zero},
        "micro_batch_size": 2 // process_group.world_size(),
    }
    trainer: Any = SFTTrainer(get_config(recipe))
    trainer.train()
    values = trainer.evaluate()
    trainer.listeners["ema"].config.evaluate = False
    own = trainer.evaluate()
    with trainer.averaged():
        weights = {name: full_parameter(one).clone() for name, one in trainer.model.module.named_parameters()}
    trainer.close()
    return values, own, weights


@pytest.mark.parametrize("stage", [0, 3])
def test_it_is_evaluated_and_exported(tmp_path: Path, stage: int) -> None:
    from transformers import AutoModelForCausalLM

    cases.recipe("sft", tmp_path)  # its files
    values, own, weights = processes.share(average_in_use, 1 + stage // 3, str(tmp_path), stage)[0]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / f"{stage}" / "step_3")
    assert all(torch.equal(one, weights[name]) for name, one in exported.named_parameters())
    recipe = cases.recipe("sft", tmp_path, epochs=0, evaluate_first=True, output_dir=str(tmp_path / "again"))
    recipe["model"]["name_or_path"] = str(tmp_path / f"{stage}" / "step_3")
    recipe["data"]["eval_sources"] = recipe["data"]["sources"]
    trainer: Any = SFTTrainer(get_config(recipe))
    expected = trainer.evaluate()["loss/eval"]
    trainer.close()
    assert values["loss/eval"] == pytest.approx(expected, rel=1e-5)
    assert abs(own["loss/eval"] - expected) > 1e-3
