"""Engines in real processes: gradients that do not depend on the cut, updates that are skipped, frozen models."""

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from arctic_training.distributed import process_group
from arctic_training.engine.initialize import freeze, initialize
from arctic_training.engine.zero import full_gradient, full_parameter, is_partitioned
from arctic_training.errors.types import RecipeError
from tests import processes
from tests.engine import small

ROWS, WIDTH = 4, 6


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch: [4, 5, 6] and lopsided masks [4, 5] of its targets."""
    draw = torch.Generator().manual_seed(3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    return torch.randn(ROWS, 5, WIDTH, generator=draw), mask


def cut(stage: int, micro: int, dtype: str = "fp32") -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradient and updated weights when the global batch is cut into micro-batches of ``micro`` rows on each rank."""
    world = process_group.world_size()
    steps = ROWS // (micro * world)
    planned = steps + 1  # a window that is shorter than planned
    engine = small.make(stage, dtype, planned, gradient_clipping=0.1)
    inputs, mask = rows()
    share = mask.sum() / (steps * world)
    engine.eval()  # no dropout
    for step in range(steps):
        first = (step * world + process_group.rank()) * micro
        x, selected = inputs[first : first + micro], mask[first : first + micro]
        engine.set_gradient_accumulation_boundary(step == steps - 1)
        lost = (engine(x) - x).square().mean(-1)
        engine.backward((lost * selected).sum() / share * (planned / steps))
        if step < steps - 1:
            engine.step()
    named = [(name, one) for name, one in engine.module.named_parameters() if one.requires_grad]
    gradients = {name: grad for name, one in named if (grad := full_gradient(one)) is not None}
    engine.step()
    assert engine.global_steps == 1
    weights = {name: full_parameter(one) for name, one in named}
    engine.destroy()
    return gradients, weights


def cuts() -> dict[str, Any]:
    process_group.init_process_group()
    outcomes = {}
    for stage in small.STAGES:
        for micro in (4, 2, 1):
            if ROWS // (micro * process_group.world_size()):
                outcomes[f"stage {stage}, {micro} rows"] = cut(stage, micro)
    return outcomes


def reference() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Trains with plain torch on the full batch."""
    torch.manual_seed(0)
    net = small.Net().eval()
    inputs, mask = rows()
    (((net(inputs) - inputs).square().mean(-1) * mask).sum() / mask.sum()).backward()
    named = [(name, one) for name, one in net.named_parameters() if one.requires_grad]
    gradients = {name: one.grad.clone() for name, one in named if one.grad is not None}
    torch.nn.utils.clip_grad_norm_([one for _, one in named], 0.1)
    groups = [[one for _, one in named if one.dim() > 1], [one for _, one in named if one.dim() <= 1]]
    torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}], lr=1e-2
    ).step()
    return gradients, {name: one.detach() for name, one in named}


@pytest.mark.parametrize("world", [1, 2])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(world: int) -> None:
    gradients, weights = reference()
    for outcomes in processes.share(cuts, world):
        assert len(outcomes) == 4 * (4 - world)
        for case, (grads, after) in outcomes.items():
            assert grads.keys() == gradients.keys(), case
            for name in gradients:
                torch.testing.assert_close(grads[name], gradients[name], rtol=1e-6, atol=1e-6, msg=f"{case}: {name}")
                torch.testing.assert_close(after[name], weights[name], rtol=1e-5, atol=1e-6, msg=f"{case}: {name}")


def odd_model() -> Any:
    """GPT-2 of a width and a number of weights that are odd."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 449, "n_positions": 16, "n_embd": 33, "n_layer": 1, "n_head": 3, "n_inner": 65}
    return GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))  # type: ignore[arg-type]


def odd_losses(model: Any, step: Callable[[torch.Tensor], None]) -> list[float]:
    ids, losses = torch.arange(16).reshape(2, 8), []
    for _ in range(2):
        loss = model(input_ids=ids, labels=ids).loss
        step(loss)
        losses.append(loss.item())
    return losses


def odd_models() -> dict[int, list[float]]:
    process_group.init_process_group()
    outcomes = {}
    for stage in small.STAGES:
        model = odd_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1.0)
        config = small.recipe(zero_optimization={"stage": stage}, gradient_clipping=0.0)
        engine = initialize(config, model, optimizer, schedule)

        def step(loss: torch.Tensor, engine: Any = engine) -> None:
            engine.backward(loss)
            engine.step()

        outcomes[stage] = odd_losses(engine, step)
        engine.destroy()
    return outcomes


@pytest.mark.parametrize("world", [1, 2])
def test_an_odd_number_of_weights_trains_at_every_stage(world: int) -> None:
    model = odd_model()
    assert sum(parameter.numel() for parameter in model.parameters()) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    alone = odd_losses(model, step)
    for outcomes in processes.share(odd_models, world):
        for stage, losses in outcomes.items():
            assert losses == pytest.approx(alone, rel=1e-5), f"stage {stage}"


def skips() -> dict[str, Any]:
    """A window with a NaN on one rank in one micro-batch, at every stage and precision, clipping on and off."""
    process_group.init_process_group()
    outcomes = {}
    for stage in small.STAGES:
        for dtype, clipping in (("fp32", 1.0), ("fp32", 0.0), ("bf16", 1.0)):
            engine = small.make(stage, dtype, 2, gradient_clipping=clipping)
            small.window(engine, 0, 2, 2)
            rates = [engine.last_lr]
            before, norm = small.everything(engine), engine.grad_norm
            for step in range(2):
                x = small.batch(step).to(next(engine.module.parameters()).dtype)
                engine.set_gradient_accumulation_boundary(step == 1)
                broken = math.nan if step == 0 and process_group.is_main() else 1.0
                engine.backward(engine(x).float().sum() * broken)
                engine.step()
            after = small.everything(engine)
            changed = [name for name in small.differing(before, after) if not name.startswith("buffer")]
            counts = (engine.global_steps, engine.skipped_steps, norm is not None and norm > 0, engine.grad_norm)
            small.window(engine, 4, 1, 2)
            rates.append(engine.last_lr)
            finite = all(bool(torch.isfinite(one.float()).all()) for one in small.everything(engine).values())
            outcomes[f"{stage} {dtype} {clipping}"] = (changed, counts, rates, finite, engine.global_steps)
            engine.destroy()
    return outcomes


@pytest.mark.parametrize("world", [1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(world: int) -> None:
    for outcomes in processes.share(skips, world):
        assert len(outcomes) == 12
        for case, (changed, counts, rates, finite, steps) in outcomes.items():
            assert changed == [], case
            assert counts == (2, 1, True, math.inf), case
            assert rates == pytest.approx([0.01, 0.005]), case  # the schedule stayed too
            assert finite, case
            assert steps == 3, case


def together() -> dict[str, Any]:
    """Two trained engines and a frozen one in the same process, as a GAN or DPO has them."""
    process_group.init_process_group()
    outcomes = {}
    for stage in small.STAGES:
        one, other = small.make(stage, seed=1), small.make(stage, "bf16", seed=2)
        alone = small.make(stage, seed=1)
        net = small.Net()
        frozen = freeze(small.recipe(zero_optimization={"stage": stage}), net, dtype="bf16")
        untouched = {name: full_parameter(parameter) for name, parameter in frozen.module.named_parameters()}
        for update in range(3):
            torch.manual_seed(update)
            small.window(alone, update, 1, 1)
            torch.manual_seed(update)
            small.window(one, update, 1, 1)
            small.window(other, update, 1, 1)
            with torch.no_grad():
                answer = frozen(small.batch(update).bfloat16())
        after = {name: full_parameter(parameter) for name, parameter in frozen.module.named_parameters()}
        outcomes[str(stage)] = {
            "disturbed": small.differing(small.everything(one), small.everything(alone)),
            "frozen": small.differing(untouched, after),
            "answer": bool(torch.isfinite(answer).all()) and answer.dtype == torch.bfloat16,
            "partitioned": is_partitioned(frozen.module),
            "mode": frozen.train().module.training,
        }
        for engine in (one, other, alone, frozen):
            engine.destroy()
    return outcomes


@pytest.mark.parametrize("world", [1, 2])
def test_engines_in_one_process_do_not_disturb_each_other(world: int) -> None:
    for outcomes in processes.share(together, world):
        for stage, result in outcomes.items():
            expected = {"disturbed": [], "frozen": [], "answer": True, "partitioned": stage == "3", "mode": False}
            assert result == expected, stage


def offloaded() -> list[str]:
    """The optimizer on the CPU: the same updates."""
    process_group.init_process_group()
    wrong = []
    for stage in (1, 2, 3):
        results = []
        for device in ("none", "cpu"):
            config = {"stage": stage, "offload_optimizer": {"device": device}}
            engine = small.make(stage, "bf16", 2, zero_optimization=config)
            torch.manual_seed(0)
            for update in range(2):
                small.window(engine, 2 * update, 2, 2)
            results.append({name: full_parameter(one) for name, one in engine.module.named_parameters()})
            engine.destroy()
        for name, other in results[0].items():
            if not torch.allclose(other.float(), results[1][name].float(), atol=2e-3):
                wrong.append(f"{stage}: {name}")
    return wrong


def test_the_optimizer_may_live_on_the_cpu() -> None:
    assert processes.share(offloaded, 1) == [[]]


def padded() -> list[str]:
    """Parameters that two processes cannot halve, where memory nobody has written reads as NaN."""
    process_group.init_process_group()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan(), "memory is not filled"
    wrong = []
    try:
        for dtype, device in (("fp32", "none"), ("bf16", "none"), ("bf16", "cpu")):
            config = {"stage": 3, "offload_optimizer": {"device": device}}
            engine = small.make(3, dtype, width=17, zero_optimization=config)
            frozen = freeze(small.recipe(zero_optimization={"stage": 3}), small.Net(17), dtype=dtype)
            small.window(engine, 0, 1, 1)
            held = small.everything(engine) | {
                f"frozen.{name}": parameter.ds_tensor  # type: ignore[attr-defined]
                for name, parameter in frozen.module.named_parameters()
            }
            wrong += [f"{dtype}, {device}: {name}" for name, one in held.items() if not one.isfinite().all()]
            engine.destroy()
            frozen.destroy()
    finally:
        torch.use_deterministic_algorithms(False)
    return wrong


def test_what_fills_up_the_parts_of_a_parameter_is_zero() -> None:
    assert processes.share(padded, 2) == [[], []]


def sixteen() -> str:
    with mock.patch.object(type(get_accelerator()), "is_fp16_supported", return_value=False):
        try:
            small.make(0, "fp16")
        except RecipeError as error:
            return str(error)
    return ""


def test_fp16_where_it_is_not_to_be_had_is_refused() -> None:
    (message,) = processes.share(sixteen, 1)
    assert message == "model.dtype: fp16 cannot be trained on this cpu; use bf16 or fp32"


def test_a_frozen_model_takes_no_gradient() -> None:
    frozen: Any = freeze(small.recipe(), small.Net(), dtype="bf16")
    with pytest.raises(TypeError, match="no gradients"):
        frozen.backward(torch.zeros(()))
    with pytest.raises(TypeError, match="no steps"):
        frozen.step()
    assert frozen.module.head.weight.dtype == torch.bfloat16
    assert frozen.module.constant.dtype == torch.float32, "rotary frequencies would be others than the policy's"
    assert not any(parameter.requires_grad for parameter in frozen.module.parameters())
