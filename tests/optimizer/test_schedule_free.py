"""Schedule-free AdamW is that of its authors, and is evaluated, exported and resumed by the average that it keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training import SFTTrainer, get_config, load_pretrained
from arctic_training.distributed import process_group
from arctic_training.engine.averaging import averaged_weights
from arctic_training.engine.replaced_weights import replaced_weights
from arctic_training.engine.zero import full_parameter
from arctic_training.errors.types import RecipeError
from arctic_training.optimizer.factory import parameter_groups
from arctic_training.optimizer.schedule_free import ScheduleFreeAdamW, ScheduleFreeFactory
from arctic_training.testing import check_resume
from tests import processes
from tests.checkpoint import elastic
from tests.contract import cases
from tests.engine import small
from tests.optimizer.test_optimizers import Net, make

STEPS, WARMUP = 50, 10
NVME = {"device": "nvme", "nvme_path": "nvme"}


def gradients(net: torch.nn.Module, step: int) -> None:
    net.zero_grad()
    ids = torch.randint(0, 11, (32,), generator=torch.Generator().manual_seed(step))
    torch.nn.functional.cross_entropy(net(ids), (ids * 3 + 1) % 11).backward()


def lr_of(step: int) -> float:
    """A warm-up that begins at 0, as schedules here do."""
    return 0.02 * min(1.0, step / WARMUP)


def trained() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The weights that are trained, and the averages, after all steps of ours."""
    torch.manual_seed(0)
    net = Net()
    optimizer = make(ScheduleFreeFactory, 0, "fp32", net, weight_decay=0.3, betas=[0.8, 0.95])
    for step in range(STEPS):
        gradients(net, step)
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        optimizer.step()
    from arctic_training.engine.averaging import average, averaging

    b = averaging(optimizer.param_groups)
    assert b == 0.8
    averages = [average(one, optimizer.state[one]["z"], b) for one in net.parameters()]
    return [one.detach() for one in net.parameters()], averages


def test_it_is_that_of_the_authors_to_1e_6() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    torch.manual_seed(0)
    net = Net()
    optimizer = schedulefree.AdamWScheduleFree(parameter_groups(net, 0.3), betas=(0.8, 0.95), foreach=False)
    optimizer.train()
    for step in range(STEPS):
        gradients(net, step)
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        optimizer.step()
    weights, averages = trained()
    for expected, one in zip(net.parameters(), weights, strict=True):
        torch.testing.assert_close(one, expected.detach(), rtol=0, atol=1e-6)
    optimizer.eval()
    for expected, one in zip(net.parameters(), averages, strict=True):
        torch.testing.assert_close(one, expected.detach(), rtol=0, atol=1e-6)


def test_it_is_that_of_the_paper_in_double_precision() -> None:
    """Algorithm 1 as it is written, with x, y and z, and Adam's bias correction of the squares."""
    generator = np.random.default_rng(0)
    target, start = generator.normal(size=(4, 3)), generator.normal(size=(4, 3))
    ours = torch.nn.Parameter(torch.tensor(start))
    optimizer = ScheduleFreeAdamW([{"params": [ours], "weight_decay": 0.1}], lr=0.05, betas=(0.9, 0.99), eps=1e-8)
    x, z, v, total = start.copy(), start.copy(), np.zeros((4, 3)), 0.0
    for t in range(1, 30):
        lr = 0.05 * min(1, t / 5)
        y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(ours.detach().numpy(), y, rtol=0, atol=1e-12)
        g = np.sin(y - target)
        v = 0.99 * v + 0.01 * g**2
        z = z - lr * (g / (np.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.1 * y)
        total += lr**2
        x = (1 - lr**2 / total) * x + lr**2 / total * z
        ours.grad = torch.sin(ours.detach() - torch.tensor(target))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    np.testing.assert_allclose(ours.detach().lerp(optimizer.state[ours]["z"], 1 - 1 / 0.9).numpy(), x, atol=1e-12)


def averages(layouts: list[tuple[elastic.Layout, str]]) -> dict[tuple[elastic.Layout, str], dict[str, torch.Tensor]]:
    """The full weights that are evaluated after some steps; those that are trained are the same to the bit after it."""
    process_group.init_process_group()
    outcomes = {}
    for layout, dtype in layouts:
        engine = elastic.make(layout, "schedule_free", dtype)
        assert all(not one.any() for one in differences(engine))  # nothing has been averaged
        for number in range(4):
            elastic.update(engine, number)
        before, weights = small.everything(engine), averaged_weights(engine)
        assert weights is not None
        with replaced_weights(engine, weights):
            outcomes[layout, dtype] = {name: one.float() for name, one in elastic.full_tensors(engine).items()}
            assert averaged_weights(engine) is None  # what is there is not what is trained
        assert not small.differing(before, small.everything(engine))
        assert any(one.any() for one in differences(engine))
        engine.destroy()
    return outcomes


def differences(engine: Any) -> list[torch.Tensor]:
    weights = averaged_weights(engine)
    assert weights is not None
    held = dict(engine.module.named_parameters())
    return [
        one.view(-1) - getattr(held[name], "ds_tensor", held[name]).detach().view(-1) for name, one in weights.items()
    ]


def test_the_average_is_the_same_at_every_stage_and_on_two_processes() -> None:
    (alone,) = processes.share(averages, 1, [(0, "fp32"), (1, "fp32"), (0, "bf16"), (1, "bf16")])
    expected = alone[0, "fp32"]
    two = processes.share(averages, 2, [(0, "fp32"), (1, "fp32"), ("2 offloaded", "fp32"), (3, "fp32"), (3, "bf16")])
    for outcomes in (alone, *two):
        for (layout, dtype), weights in outcomes.items():
            for name, one in expected.items():
                near = 1e-6 if dtype == "fp32" else 3e-2
                torch.testing.assert_close(weights[name], one, rtol=0, atol=near, msg=f"{layout}, {dtype}: {name}")


def recipe(folder: Path, run: str = "run", **more: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "train_iters": 3,
        "evaluate_last": True,
        "optimizer": {"type": "schedule_free", "lr": 0.02},
        "scheduler": {"type": "constant", "warmup_steps": 1},
        "checkpoint": [{"type": kind, "save_end_of_training": True} for kind in ("deepspeed", "huggingface")],
    }
    one = cases.recipe("sft", folder, output_dir=str(folder / run), **{**keys, **more})
    one["data"]["eval_sources"] = one["data"]["sources"]
    return one


def run_of(folder: str, stage: int) -> tuple[dict[str, float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Trains; returns an evaluation after the end, the weights and the averages."""
    world = {"micro_batch_size": 2 // process_group.world_size(), "deepspeed": {"zero_optimization": {"stage": stage}}}
    trainer: Any = SFTTrainer(get_config(recipe(Path(folder), **world)))
    trainer.train()
    values = trainer.evaluate()
    weights = {name: full_parameter(one) for name, one in trainer.model.module.named_parameters()}
    with trainer.averaged(), trainer.averaged():
        averages = {name: full_parameter(one) for name, one in trainer.model.module.named_parameters()}
    trainer.close()
    return values, weights, averages


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 1), (2, 3)])
def test_the_average_is_evaluated_and_exported(world: int, stage: int, tmp_path: Path) -> None:
    recipe(tmp_path)  # its files
    values, weights, averages = processes.share(run_of, world, str(tmp_path), stage)[0]
    assert any(not torch.equal(weights[name], one) for name, one in averages.items())
    for kind in ("deepspeed", "huggingface"):
        model, _ = load_pretrained(tmp_path / "run" / "checkpoints" / kind, device="cpu")
        assert all(torch.equal(one, averages[name]) for name, one in model.named_parameters()), kind
    again = recipe(tmp_path, "again", epochs=0, train_iters=0, evaluate_first=True, checkpoint=[], optimizer={"lr": 1})
    again["model"]["name_or_path"] = str(tmp_path / "run" / "checkpoints" / "huggingface" / "step_3")
    trainer: Any = SFTTrainer(get_config(again))
    assert trainer.evaluate()["loss/eval"] == pytest.approx(values["loss/eval"], rel=1e-6)
    trainer.close()


def test_a_run_ends_with_the_best_average(tmp_path: Path) -> None:
    best = {"type": "restore_best", "monitor": "loss/eval", "mode": "max"}  # so that the first is the best
    trainer: Any = SFTTrainer(get_config(recipe(tmp_path, eval_interval=1, callbacks=[best], checkpoint=[])))
    seen: list[dict[str, torch.Tensor]] = []

    def keep(it: Any) -> None:
        with it.averaged():
            seen.append({name: one.detach().clone() for name, one in it.model.module.named_parameters()})

    trainer.listen("post-after_update", keep)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    trainer.close()
    model, _ = load_pretrained(tmp_path / "saved", device="cpu")
    assert all(torch.equal(one, seen[0][name]) for name, one in model.named_parameters())
    assert any(not torch.equal(one, seen[2][name]) for name, one in model.named_parameters())


def test_a_run_resumes_to_the_bit(tmp_path: Path) -> None:
    check_resume({"type": "sft", **recipe(tmp_path, checkpoint=[])}, steps=3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scheduler": {"name": "linear"}}, r"scheduler: with optimizer.type schedule_free .* may only warm up; give"),
        ({"callbacks": [{"type": "ema"}]}, "callbacks.ema: optimizer.type schedule_free averages the weights of model"),
        (
            {"deepspeed": {"zero_optimization": {"stage": 3, "offload_optimizer": NVME}}, "checkpoint": []},
            "optimizer.type: with deepspeed.zero_optimization.offload_optimizer.device: nvme",
        ),
    ],
)
def test_what_would_not_be_its_average_is_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        SFTTrainer(get_config(recipe(tmp_path, **keys)))
    assert not (tmp_path / "run").exists()
