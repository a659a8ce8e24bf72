"""The moving average of weights: its formula, its memory, and that it leaves the network alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from arctic_training.callback.ema import EMA, EMAConfig
from arctic_training.errors.types import RecipeError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def run(module: nn.Module) -> Any:
    engines = {"model": SimpleNamespace(module=module)}
    return SimpleNamespace(engines=engines, trainable_engines=engines)


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
    assert ema(module, torch.ones(1, 1)).item() == pytest.approx(expected, abs=1e-5)
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
    assert ema(module, torch.ones(1, 4).bfloat16()).dtype == torch.bfloat16


def test_refuses_a_network_that_is_not_trained() -> None:
    with pytest.raises(RecipeError, match=r"'critic' is not trained here; there are: model"):
        started(network(), role="critic")
