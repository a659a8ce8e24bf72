"""Clipping by value: the elements of the whole gradient of a step, at every ZeRO stage and on any number of ranks."""

import math
from typing import Any

import pytest
import torch

from arctic_training import get_config
from arctic_training.distributed import process_group
from arctic_training.errors.types import RecipeError
from arctic_training.optimizer.deepspeed_factories import MuonFactory
from tests import processes
from tests.checkpoint import elastic
from tests.optimizer.test_optimizers import Net, view

LIMIT, STEPS = 0.02, 3
LAYOUTS: tuple[elastic.Layout, ...] = (0, 1, 2, 3, "2 offloaded", "3 offloaded")


def clipped() -> dict[elastic.Layout, dict[str, torch.Tensor]]:
    """The full weights after some steps of SGD, whose steps are as long as the gradient."""
    process_group.init_process_group()
    outcomes = {}
    for layout in LAYOUTS:
        engine = elastic.make(layout, "sgd", clip_value=LIMIT)
        for number in range(STEPS):
            elastic.update(engine, number)
        outcomes[layout] = elastic.full_tensors(engine)
        engine.destroy()
    return outcomes


def reference() -> tuple[dict[str, torch.Tensor], float]:
    """Plain torch on the whole batch; also the least share of elements that a step clips."""
    torch.manual_seed(0)
    net, least = elastic.Net(), 1.0
    trained = [one for one in net.parameters() if one.requires_grad]
    for number in range(STEPS):
        net.zero_grad()
        rows = torch.randn(elastic.ROWS, 6, generator=torch.Generator().manual_seed(number))
        (net(rows) - rows).square().mean().backward()
        grads = torch.cat([one.grad.flatten() for one in trained if one.grad is not None])
        least = min(least, (grads.abs() > LIMIT).float().mean().item())
        torch.nn.utils.clip_grad_value_(trained, LIMIT)
        with torch.no_grad():
            for one in trained:
                gradient = torch.zeros_like(one) if one.grad is None else one.grad
                one -= 1e-2 / (1 + number) * (gradient + (0.1 if one.dim() > 1 and one.grad is not None else 0) * one)
    return {name: one.detach() for name, one in (*net.named_parameters(), *net.named_buffers())}, least


@pytest.mark.parametrize("world", [1, 2])
def test_the_gradient_of_the_whole_step_is_clipped_at_every_stage(world: int) -> None:
    expected, least = reference()
    assert 0.05 < least < 0.95
    for outcomes in processes.share(clipped, world):
        for layout, weights in outcomes.items():
            assert weights.keys() == expected.keys()
            for name, one in expected.items():
                torch.testing.assert_close(weights[name], one, rtol=0, atol=1e-6, msg=f"stage {layout}: {name}")


def steps_in_bf16() -> dict[elastic.Layout, torch.Tensor]:
    """The gradients that one step has used, read from the fp32 weights before and after it."""
    process_group.init_process_group()
    outcomes = {}
    for layout in (0, 1, 2, 3):
        engine = elastic.make(layout, "sgd", "bf16", clip_value=LIMIT)
        before = elastic.masters(engine)
        elastic.update(engine, 0)
        after = elastic.masters(engine)
        used = [
            (before[name] - after[name]) / 1e-2 - (0.1 if before[name].dim() > 1 else 0) * before[name]
            for name in before
        ]
        outcomes[layout] = torch.cat([one.flatten() for one in used])
        engine.destroy()
    return outcomes


def test_elements_in_bf16_are_clipped_in_fp32() -> None:
    (outcomes,) = processes.share(steps_in_bf16, 1)
    for layout, used in outcomes.items():
        assert used.abs().max().item() == pytest.approx(LIMIT, rel=1e-3), f"stage {layout}"
        assert 0.05 < (used.abs() > 0.999 * LIMIT).float().mean() < 0.95, f"stage {layout}"


@pytest.mark.parametrize("stage", [0, 2])
def test_a_gradient_that_is_not_finite_is_not_made_finite(stage: int) -> None:
    process_group.init_process_group()
    engine = elastic.make(stage, "sgd", clip_value=LIMIT)
    before = elastic.full_tensors(engine)
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(engine(torch.ones(1, 6)).sum() * math.inf)
    engine.step()
    assert (engine.global_steps, engine.skipped_steps) == (1, 1)
    after = elastic.full_tensors(engine)
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    engine.destroy()


BASE: dict[str, Any] = {"type": "sft", "data": {"sources": ["rows.jsonl"]}, "model": {"name_or_path": "model"}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_grad_norm": 1.0}, "gradient_clip_value: 0.5 clips by value, and max_grad_norm: 1 by the norm"),
        ({"deepspeed": {"gradient_clipping": 1.0}}, "gradient_clipping: 1.0, and the recipe's gradient_clip_value"),
        ({"gradient_clip_value": 0}, "gradient_clip_value: 0 should be greater than 0"),
        ({"gradient_clip_val": 0.5}, "here this is max_grad_norm"),
        ({"gradient_clip_algorithm": "value"}, "gradient_clip_value by value"),
    ],
)
def test_two_ways_to_clip_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_config({**BASE, "gradient_clip_value": 0.5, **keys})
    assert get_config({**BASE, "gradient_clip_value": 0.5, "max_grad_norm": 0}).max_grad_norm == 0


def test_muon_is_refused_where_its_steps_would_be_clipped() -> None:
    run = view(1, "bf16")
    run.config.deepspeed = {"zero_optimization": {"stage": 1}}
    run.config.gradient_clip_value = 0.5
    section: Any = MuonFactory.config_type(type="muon")
    with pytest.raises(RecipeError, match=r"gradient_clip_value: at ZeRO stage 1 .* give deepspeed.*stage: 0"):
        MuonFactory(run, section)(Net())
