"""Energy models: samples without a gradient, noise that no split of the batch changes, kept samples, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training import get_config
from arctic_training.errors.types import DataError, ModelError, RecipeError
from arctic_training.objectives.energy import EnergyTrainer
from arctic_training.testing import check_cut
from tests import processes
from tests.objectives.tiny_runs import gradients

MODEL = {"type": "mlp", "sizes": [2, 8, 1], "activation": "silu"}
PCD = {"method": "pcd", "replay_size": 20, "replay_share": 0.8}


def make_recipe(folder: Path, **keys: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    points = folder / "points.npy"
    if not points.exists():
        np.save(points, np.random.default_rng(0).normal(size=(21, 2)).astype(np.float32))
    recipe = {
        "type": "energy",
        "model": MODEL,
        "data": {"sources": [str(points)], "eval_sources": [str(points)]},
        "optimizer": {"type": "sgd", "lr": 0.1},
        "deepspeed": {"gradient_clipping": 0},
        "step_size": 0.2,
        "micro_batch_size": 8,
        "train_iters": 5,  # 21 rows: the last window of an epoch is short
        "loss_log_interval": 0,
        "output_dir": str(folder / "run"),
        "logger": {"level": "ERROR"},
    }
    if keys.get("method") != "score_matching":
        recipe["mcmc_steps"] = 3
    return recipe | keys


def make_trainer(folder: Path, **keys: Any) -> EnergyTrainer:
    return EnergyTrainer(get_config(make_recipe(folder, **keys)))


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    trainer = make_trainer(Path(folder), **keys)
    trainer.train()
    weights = {name: one.detach().clone() for name, one in trainer.model.module.named_parameters()}
    trainer.close()
    return weights


def test_samples_have_no_gradient(tmp_path: Path) -> None:
    """The gradient of the loss is the mean gradient at the data less that at the samples, taken as numbers."""
    trainer = make_trainer(tmp_path, method="cd", energy_regularization=0.1, mala=True)
    rows, draw = torch.randn(6, 2), torch.arange(6)
    module = trainer.model.module
    drawn = trainer._chains(rows, draw).rows
    assert not drawn.requires_grad and not torch.equal(drawn, rows)
    real, fake = module(rows)[:, 0], module(drawn)[:, 0]
    expected = torch.autograd.grad(
        real.mean() - fake.mean() + 0.1 * (real.square().mean() + fake.square().mean()), list(module.parameters())
    )
    loss = trainer.loss({"rows": rows, "draw": draw, "num_items_in_batch": 6.0})
    for gradient, other in zip(gradients(trainer, loss).values(), expected, strict=True):
        torch.testing.assert_close(gradient, other)
    assert all(parameter.requires_grad for parameter in module.parameters())
    trainer.close()


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "cd", "mala": True},
        {"method": "score_matching"},
        {"method": "score_matching", "score_matching": "sliced"},
        {"method": "score_matching", "score_matching": "denoising"},
    ],
    ids=str,
)
def test_no_split_of_the_global_batch_changes_the_step(keys: dict[str, Any], tmp_path: Path) -> None:
    assert check_cut(make_recipe(tmp_path, **keys), cuts=[(2, 4)]) == 1


@pytest.mark.parametrize(
    "keys", [{"method": "cd", "noise_scale": 0.1, "max_gradient": 0.5}, {**PCD, "mala": True}], ids=str
)
def test_no_split_of_the_global_batch_changes_a_run(keys: dict[str, Any], tmp_path: Path) -> None:
    """Of several steps, so that chains start from those of earlier ones."""
    expected = train(str(tmp_path), **keys)
    cut = train(str(tmp_path), **keys, micro_batch_size=2, gradient_accumulation_steps=4)
    for name, weight in expected.items():
        torch.testing.assert_close(cut[name], weight, rtol=1e-4, atol=1e-6)


def test_two_processes_are_one(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"method": "cd", "mala": True}
    expected = train(str(tmp_path), **keys)
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": 2}}
    for part in processes.share(train, 2, str(tmp_path), **keys, micro_batch_size=4, deepspeed=block):
        for name, weight in expected.items():
            torch.testing.assert_close(part[name], weight, rtol=1e-4, atol=1e-6)


def test_kept_samples_are_the_newest_and_started_from(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **PCD, evaluate_last=True)
    assert len(trainer.replay) == 0
    trainer.train()
    assert len(trainer.replay) == 20 and trainer.replay.rows is not None  # of 42 rows, and none of the evaluation
    before = trainer.replay.rows.clone()
    trainer.evaluate()
    assert torch.equal(before, trainer.replay.rows)
    draw = torch.arange(4000)
    starts = trainer._starts(draw)
    is_kept = (starts[:, None] == before).all(-1)
    assert float(is_kept.any(1).double().mean()) == pytest.approx(0.8, abs=0.03)
    assert int(is_kept.sum(0).min()) > 100  # each of them, about 160 times
    assert torch.equal(starts[7:9], trainer._starts(draw[7:9]))
    trainer.close()


def test_samples_are_the_same_every_time_and_leave_no_trace(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, method="cd", sample_steps=5)
    state = torch.get_rng_state()
    rows = trainer.sample(6)
    assert torch.equal(rows, trainer.sample(6)) and rows.shape == (6, 2)
    torch.testing.assert_close(rows[:2], trainer.sample(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(one.requires_grad and one.grad is None for one in trainer.model.module.parameters())
    trainer.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "cd", "replay_size": 5}, "replay_size: is for method: pcd; remove it"),
        ({"method": "score_matching", "mcmc_steps": 5}, "mcmc_steps: is for method: cd or pcd; remove it"),
        ({"method": "cd", "score_matching": "sliced"}, "score_matching: is for method: score_matching; remove it"),
        (
            {"method": "score_matching", "denoising_sigma": 0.5},
            "denoising_sigma: is for score_matching: denoising; remove it",
        ),
        ({"mala": True, "noise_scale": 0}, "mala: a chain without noise"),
        (
            {"method": "score_matching", "model": {"sizes": [2, 8, 1]}},
            "model.activation: relu has no second derivative",
        ),
        (
            {"method": "score_matching", "deepspeed": {"zero_optimization": {"stage": 3}}},
            "score_matching differentiates a gradient, which ZeRO stage 3 does not support",
        ),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_config({"type": "energy", "model": MODEL, "data": {"sources": ["rows.npy"]}, **keys})


def test_networks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for sizes, message in (
        ([2, 8, 2], r"model: rows of shape \[2\] become \[2\]; expected \[1\]"),
        ([3, 8, 1], r"model: cannot be computed for rows of shape \[2\]"),
    ):
        with pytest.raises(ModelError, match=message):
            make_trainer(tmp_path, model={**MODEL, "sizes": sizes})
    np.save(tmp_path / "points.npy", np.ones((9, 2), dtype=np.int64))
    with pytest.raises(DataError, match=r"rows are torch.int64; a density needs floats"):
        make_trainer(tmp_path)
