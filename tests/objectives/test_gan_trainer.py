"""Two networks that train each other: how the global batch is cut changes nothing, and nothing leaks between them."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training import get_config
from arctic_training.errors.types import ModelError
from arctic_training.registry import lookup
from tests import processes

EXACT = {"rtol": 1e-4, "atol": 2e-6}


def make_trainer(folder: Path, **keys: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    points = folder / "points.npy"
    if not points.exists():
        np.save(points, np.random.default_rng(0).normal(size=(37, 2)).astype(np.float32))
    recipe = {
        "type": "gan",
        "model": {"type": "mlp", "sizes": [3, 16, 2]},
        "discriminator": {"type": "mlp", "sizes": [2, 16, 1]},
        "data": {"sources": [str(points)]},
        # plain descent: what Adam makes of rounding errors in tiny gradients would hide what is asked here
        "optimizer": {"type": "sgd", "lr": 0.1},
        "discriminator_optimizer": {"type": "sgd", "lr": 0.1},
        "deepspeed": {"gradient_clipping": 0},
        "latent_size": 3,
        "train_iters": 7,  # 37 rows: the last window of an epoch is short
        "loss": "hinge",
        "r1_weight": 0.5,
        "gp_weight": 0.5,
        "d_steps": 2,
        "loss_log_interval": 0,
        "output_dir": str(folder / "run"),
        "logger": {"level": "ERROR"},
        **keys,
    }
    config = get_config(recipe)
    return lookup("trainer", "gan")(config)  # type: ignore[call-arg]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {
        f"{role}.{name}": parameter.detach().clone()
        for role, engine in trainer.trainable_engines.items()
        for name, parameter in engine.module.named_parameters()
    }


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    trainer = make_trainer(Path(folder), **keys)
    trainer.train()
    trained_weights = weights(trainer)
    trainer.close()
    return trained_weights


def judged(loss: str, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's losses as their papers have them."""
    p, q = torch.sigmoid(real), torch.sigmoid(fake)
    return {
        "non_saturating": -(0.9 * p.log() + 0.1 * (1 - p).log() + (1 - q).log()),
        "least_squares": ((real - 0.9) ** 2 + fake**2) / 2,
        "hinge": (1 - real).clamp(min=0) + (1 + fake).clamp(min=0),
        "wasserstein": fake - real,
    }[loss]


def generated(loss: str, fake: torch.Tensor) -> torch.Tensor:
    """The generator's losses as their papers have them."""
    if loss == "non_saturating":
        return -torch.sigmoid(fake).log()
    return (fake - 1) ** 2 / 2 if loss == "least_squares" else -fake


def descend(network: torch.nn.Module, loss: torch.Tensor) -> None:
    for parameter, gradient in zip(
        network.parameters(), torch.autograd.grad(loss, list(network.parameters()), allow_unused=True), strict=True
    ):
        if gradient is not None:
            parameter.data -= 0.1 * gradient


def slopes(network: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """The norms of the gradients at rows."""
    rows = rows.detach().requires_grad_()
    return torch.autograd.grad(network(rows).sum(), rows, create_graph=True)[0].norm(dim=1)


@pytest.mark.parametrize("loss", ["non_saturating", "least_squares", "hinge", "wasserstein"])
def test_an_update_is_that_of_plain_torch(tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the discriminator and one of the generator, with both penalties, in double precision."""
    smooth = {"label_smoothing": 0.1} if loss in ("non_saturating", "least_squares") else {}
    plain = {"type": "sgd", "lr": 0.1, "weight_decay": 0}
    constant = {"name": "constant", "warmup_ratio": 0}
    trainer = make_trainer(
        tmp_path,
        loss=loss,
        micro_batch_size=4,
        train_iters=1,
        optimizer=plain,
        discriminator_optimizer=plain,
        scheduler=constant,
        discriminator_scheduler=constant,
        **smooth,
    )
    generator, judge = (deepcopy(trainer.engines[role].module).double() for role in ("model", "discriminator"))
    batches: list[Any] = []
    step: Callable[[Any], None] = trainer.step
    monkeypatch.setattr(trainer, "step", lambda batch: (batches.append(batch), step(batch)))
    trainer.train()
    (batch,) = batches
    rows, draw = batch["rows"].double(), batch["draw"]
    assert len(rows) == 8
    for number in range(2):
        real, share = rows[number::2], draw[number::2]
        fake = generator(trainer.normal(share, 3, stream=0).double()).detach()
        mix = trainer.uniform(share, stream=2).double()[:, None]
        losses = judged(loss, judge(real)[:, 0], judge(fake)[:, 0])
        losses = losses + 0.5 * slopes(judge, real) ** 2 / 2
        losses = losses + 0.5 * (slopes(judge, mix * real + (1 - mix) * fake) - 1) ** 2
        descend(judge, losses.mean())
    fake = generator(trainer.normal(draw[0::2], 3, stream=1).double())
    descend(generator, generated(loss, judge(fake)[:, 0]).mean())
    for network, role in ((generator, "model"), (judge, "discriminator")):
        for name, weight in trainer.engines[role].module.named_parameters():
            expected = network.get_parameter(name)
            torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    trainer.close()


@pytest.mark.fault(16, 17)
@pytest.mark.parametrize("keys", [{}, {"loss": "wasserstein"}, {"loss": "non_saturating", "label_smoothing": 0.1}])
def test_the_cut_of_the_global_batch_changes_nothing(tmp_path: Path, keys: dict[str, Any]) -> None:
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    for micro, accumulate in ((2, 2), (1, 4)):
        cut = train(str(tmp_path), micro_batch_size=micro, gradient_accumulation_steps=accumulate, **keys)
        for name, weight in expected.items():
            torch.testing.assert_close(cut[name], weight, **EXACT, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.fault(16, 17)
@pytest.mark.parametrize("stage", [2])
def test_two_processes_are_one(tmp_path: Path, stage: int) -> None:
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": stage}}
    expected = train(str(tmp_path), micro_batch_size=4)
    parts = processes.share(train, 2, str(tmp_path), micro_batch_size=2, deepspeed=block)
    for part in parts:
        for name, weight in expected.items():
            torch.testing.assert_close(part[name], weight, **EXACT, msg=lambda text, n=name: f"{n}: {text}")


def test_the_discriminator_takes_its_steps_before_each_of_the_generator(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, d_steps=3, micro_batch_size=2, gradient_accumulation_steps=2, train_iters=3)
    trainer.train()
    engines = trainer.engines
    assert engines["model"].global_steps == 3
    assert engines["discriminator"].global_steps == 9
    trainer.close()


def test_its_schedule_is_as_long_as_its_updates(tmp_path: Path) -> None:
    """Both learning rates fall to nothing at the end of the run, not the one before the other."""
    schedule = {"name": "linear", "warmup_ratio": 0}
    trainer = make_trainer(
        tmp_path, d_steps=5, micro_batch_size=1, train_iters=4, scheduler=schedule, discriminator_scheduler=schedule
    )
    trainer.train()
    last = {name: engine.last_lr for name, engine in trainer.trainable_engines.items()}
    assert last == pytest.approx({"model": 0.1 / 4, "discriminator": 0.1 / 20})
    trainer.close()


def test_the_generators_loss_leaves_no_gradient_in_the_discriminator(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    batch = {"rows": torch.randn(8, 2), "draw": torch.arange(8), "num_items_in_batch": 4.0}
    module = trainer.engines["discriminator"].module
    trainer.model.set_gradient_accumulation_boundary(True)
    trainer.model.backward(trainer.loss(batch))
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in module.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trainer.model.module.parameters())
    trainer.close()


def test_samples_are_of_the_average_and_leave_no_trace(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[{"type": "ema", "decay": 0.5, "warmup": False}], train_iters=2)
    trainer.train()
    state, before = torch.get_rng_state(), weights(trainer)
    rows = trainer.sample(5)
    assert torch.equal(rows, trainer.sample(5))
    torch.testing.assert_close(rows[:3], trainer.sample(3))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    average = trainer.listeners.pop("ema")
    assert not torch.equal(rows, trainer.sample(5))
    for name, parameter in trainer.model.module.named_parameters():
        parameter.data.copy_(average.weights[name])
    assert torch.allclose(rows, trainer.sample(5))
    trainer.close()


def sampled(folder: str, stage: int, micro: int) -> torch.Tensor:
    keys = {"r1_weight": 0, "gp_weight": 0, "callbacks": [{"type": "ema", "decay": 0.5}], "micro_batch_size": micro}
    trainer = make_trainer(
        Path(folder), deepspeed={"gradient_clipping": 0, "zero_optimization": {"stage": stage}}, **keys
    )
    trainer.train()
    rows: torch.Tensor = trainer.sample(6)
    assert torch.equal(rows, trainer.sample(6))
    trainer.close()
    return rows


def test_partitioned_weights_sample_the_same(tmp_path: Path) -> None:
    expected = sampled(str(tmp_path), 0, 4)
    for part in processes.share(sampled, 2, str(tmp_path), 3, 2):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["non_saturating", "least_squares", "hinge", "wasserstein"])
def test_every_loss_learns_where_the_points_are(tmp_path: Path, loss: str) -> None:
    folder = tmp_path / "far"
    folder.mkdir()
    np.save(folder / "points.npy", (np.random.default_rng(0).normal(size=(512, 2)) * 0.1 + 2).astype(np.float32))
    adam = {"type": "adamw", "lr": 5e-3, "betas": [0, 0.9], "weight_decay": 0}
    trainer = make_trainer(
        folder,
        loss=loss,
        r1_weight=0.5,
        gp_weight=0,
        optimizer=adam,
        discriminator_optimizer=adam,
        train_iters=250,
        micro_batch_size=32,
    )
    before = (trainer.sample(200).mean(0) - 2).norm().item()
    trainer.train()
    after = (trainer.sample(200).mean(0) - 2).norm().item()
    assert after < 0.4 < before
    trainer.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"latent_size": 4}, "model: cannot be computed for 4 latents"),
        ({"model": {"type": "mlp", "sizes": [3, 8, 5]}}, r"model: 3 latents become \[5\]; expected \[2\]"),
        ({"discriminator": {"type": "mlp", "sizes": [3, 8, 1]}}, "discriminator: cannot be computed for rows of shape"),
        ({"discriminator": {"type": "mlp", "sizes": [2, 8, 2]}}, r"discriminator: rows .* \[2\]; expected \[1\]"),
    ],
)
def test_networks_that_do_not_fit_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_trainer(tmp_path, **keys)
