"""The gradient of a trainer's loss is that of finite differences, of every weight tensor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import arctic_training.builtin  # noqa: F401  fills the registry
from arctic_training.testing.runs import build
from tests.contract.cases import recipe
from tests.objectives.tiny_runs import gradients

NLL = {"objective": "nll", "model": {"type": "zuko", "features": 2, "transforms": 2, "hidden_sizes": [8], "bins": 4}}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("autoregressive", {"scheduled_sampling": "linear", "sampling_probability": 1.0, "sampling_steps": 1}),
    ("classifier", {}),
    ("diffusion", {"weighting": "min_snr"}),
    ("distill", {}),
    ("dpo", {}),
    (
        "dpo",
        {"loss_type": ["ipo", "hinge"], "loss_weights": [0.5, 2.0], "f_divergence_type": "forward_kl", "ld_alpha": 0.4},
    ),
    ("energy", {"method": "cd", "replay_size": None}),
    ("energy", {"method": "score_matching", "mcmc_steps": None, "replay_size": None}),
    ("flow", {}),
    ("flow", {**NLL, "time_sampling": None}),
    ("gan", {"loss": "non_saturating"}),
    ("gan", {"loss": "wasserstein", "r1_weight": 0.5, "role": "discriminator"}),
    ("kto", {}),
    ("reward", {}),
    ("seq2seq", {}),
    ("sft", {}),
    ("tensor_classifier", {}),
    ("vae", {"reconstruction": "bernoulli", "kl_annealing": "none"}),
    ("vae", {"reconstruction": "mse", "kl_annealing": "none", "free_bits": 0.0, "beta": 3.0}),
]
"""Trainers, and keys of their recipes that are replaced, or removed where the value is None."""
STEP = 1e-3
"""Length of a step along the gradient of one tensor, divided by its norm."""


def settings(name: str, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    own = recipe(name, folder, output_dir=str(folder / "run"), deepspeed={"zero_optimization": {"stage": 0}})
    merged = {key: value for key, value in {**own, **changes}.items() if value is not None}
    if "hf_config_kwargs" in merged["model"]:
        merged["model"]["hf_config_kwargs"] = {}
    return merged


def prepared(trainer: Any, name: str, role: str) -> Callable[[], Tensor]:
    """Returns the loss of the first micro-batch, without dropout, and with everything that has no gradient held."""
    trainer.progress.step = 1
    for engine in trainer.engines.values():
        for part in engine.module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    batch = next(iter(trainer.train_batches))
    if name == "energy" and trainer.config.method == "cd":
        chains = trainer._chains(batch["rows"], batch["draw"])
        trainer._chains = lambda rows, draw: chains
    if name == "autoregressive":
        fed = trainer.with_predictions(batch, trainer.sampling_probability)
        assert not torch.equal(fed["input_ids"], batch["input_ids"])
        trainer.with_predictions = lambda *_: fed
    if role == "discriminator":
        return lambda: trainer.discriminator_loss(batch, 0)
    return lambda: trainer.loss(batch)


@pytest.mark.parametrize(("name", "changes"), CASES, ids=str)
def test_the_gradient_is_that_of_finite_differences(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    changes = dict(changes)
    role = changes.pop("role", "model")
    trainer: Any = build(settings(name, tmp_path, changes), [], {})
    compute = prepared(trainer, name, role)
    slopes = {key: one for key, one in gradients(trainer, compute(), role).items() if one is not None}
    weights = dict(trainer.engines[role].module.named_parameters())
    largest = max(float(slope.norm()) for slope in slopes.values())
    assert largest > 0
    for key, slope in slopes.items():
        if not slope.any():
            continue
        direction, ends = slope / slope.norm(), list[float]()
        for sign in (1, -1):
            before = weights[key].detach().clone()
            with torch.no_grad():
                weights[key].add_(sign * STEP * direction)
            ends.append(float(compute().detach()))
            with torch.no_grad():
                weights[key].copy_(before)
        measured = (ends[0] - ends[1]) / (2 * STEP)
        assert measured == pytest.approx(float(slope.norm()), abs=0.02 * largest), key
    trainer.close()
