"""Steps of several roles in one window: each is one of gradient descent on the mean over its micro-batches."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from arctic_training import Role, TensorTrainer, TrainerConfig, get_config

RATE = 0.1


class AlternatingConfig(TrainerConfig):
    parts: int = 2


class Alternating(TensorTrainer):
    """Steps ``other`` on each half of a whole window, then the model on all of it."""

    name = "alternating_of_a_test"
    config_type = AlternatingConfig
    roles: ClassVar[tuple[Role, ...]] = (Role("model"), Role("other", steps_per_update_key="parts"))

    def step(self, batch: Any) -> None:
        if self.window.index == 0:
            for one in self.window.iterate(step_size=4 // self.config.parts):
                self.update("other", squares(self.engines["other"], one))
        super().step(batch)

    def loss(self, batch: Any) -> Tensor:
        return squares(self.model, batch)


def squares(network: Any, batch: Any) -> Tensor:
    value: Tensor = network(batch["rows"]).square().mean()
    return value


def test_each_step_is_on_the_mean_over_its_micro_batches(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(22, 3)).astype(np.float32))
    sgd = {"type": "sgd", "lr": RATE, "weight_decay": 0}
    constant = {"name": "constant"}
    recipe = {
        "type": Alternating.name,
        "model": {"sizes": [3, 1]},
        "other": {"sizes": [3, 1]},
        "data": {"sources": [str(tmp_path / "rows.npy")]},
        "optimizer": sgd,
        "other_optimizer": sgd,
        "scheduler": constant,
        "other_scheduler": constant,
        "deepspeed": {"gradient_clipping": 0},
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 4,  # 11 micro-batches: windows of 4, 4 and 3
        "loss_log_interval": 0,
        "output_dir": str(tmp_path / "run"),
        "logger": {"level": "ERROR"},
    }
    trainer = Alternating(get_config(recipe))
    weights = {role: state_of(trainer, role) for role in ("model", "other")}
    windows: list[list[Any]] = []
    trainer.listen("pre-after_update", lambda trainer: windows.append(trainer.window.batches))
    logged: list[dict[str, float]] = []
    trainer.listen("post-log", lambda trainer, values: logged.append(values))
    trainer.train()
    assert list(map(len, windows)) == [4, 4, 3]
    for number, window in enumerate(windows):
        half = 2
        before = descend(weights["other"], window[:half])
        after = descend(weights["other"], window[half:])
        recorded = (before * half + after * (len(window) - half)) / len(window)
        torch.testing.assert_close(torch.tensor(logged[number]["loss/other"]), recorded)
        torch.testing.assert_close(torch.tensor(logged[number]["loss"]), descend(weights["model"], window))
    for role, expected in weights.items():
        torch.testing.assert_close(state_of(trainer, role), expected)
    assert trainer.engines["other"].global_steps == 6
    trainer.close()


def state_of(trainer: Any, role: str) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in trainer.engines[role].module.named_parameters()}


def descend(weights: dict[str, Tensor], batches: list[Any]) -> Tensor:
    """Takes one step of gradient descent in ``weights``, and returns the mean of the losses before it."""
    own = {name: one.requires_grad_() for name, one in weights.items()}
    network = torch.nn.Sequential(torch.nn.Linear(3, 1))
    losses = [squares(lambda rows: torch.func.functional_call(network, own, (rows,)), batch) for batch in batches]
    loss = torch.stack(losses).mean()
    gradients = torch.autograd.grad(loss, list(own.values()))
    for name, gradient in zip(own, gradients, strict=True):
        weights[name] = (own[name] - RATE * gradient).detach()
    return loss.detach()
