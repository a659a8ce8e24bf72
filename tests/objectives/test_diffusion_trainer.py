"""Diffusion: the loss against a plain computation, the cut of the batch, labels and guidance, and samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training import get_config
from arctic_training.errors.types import InputError
from arctic_training.objectives.diffusion import DiffusionTrainer
from tests import processes

EXACT = {"rtol": 1e-4, "atol": 2e-6}
LABELED = {"model": {"type": "time_mlp", "sizes": [3, 16, 3], "time_size": 8, "num_labels": 4}, "label_dropout": 0.3}


def make_trainer(folder: Path, **keys: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "rows.npz"
    if not data.exists():
        generator = np.random.default_rng(0)
        labels = np.arange(37) % 5 - 1
        labels[labels < 0] = -100
        np.savez(data, rows=generator.normal(size=(37, 3)).astype(np.float32), labels=labels)
    recipe = {
        "type": "diffusion",
        "model": {"type": "time_mlp", "sizes": [3, 16, 3], "time_size": 8},
        "data": {"sources": [str(data)], "eval_sources": [str(data)]},
        "optimizer": {"type": "sgd", "lr": 0.1},  # plain descent: Adam would enlarge rounding errors of tiny gradients
        "deepspeed": {"gradient_clipping": 0},
        "train_iters": 7,  # 37 rows: the last window of an epoch is short
        "timesteps": 100,
        "sampling_steps": 5,
        "loss_log_interval": 0,
        "output_dir": str(folder / "run"),
        "logger": {"level": "ERROR"},
        **keys,
    }
    return DiffusionTrainer(get_config(recipe))


def train(folder: str, **keys: Any) -> dict[str, torch.Tensor]:
    trainer = make_trainer(Path(folder), **keys)
    trainer.train()
    weights = {name: one.detach().clone() for name, one in trainer.model.module.named_parameters()}
    trainer.close()
    return weights


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {**LABELED, "prediction": "v", "noise_schedule": "cosine", "timestep_sampling": "logit_normal"},
        {"prediction": "x0", "weighting": "min_snr", "timestep_sampling": "mode", "noise_schedule": "sqrt"},
    ],
)
def test_the_cut_of_the_global_batch_changes_nothing(tmp_path: Path, keys: dict[str, Any]) -> None:
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    for micro, accumulate in ((2, 2), (1, 4)):
        cut = train(str(tmp_path), micro_batch_size=micro, gradient_accumulation_steps=accumulate, **keys)
        for name, weight in expected.items():
            torch.testing.assert_close(cut[name], weight, **EXACT, msg=lambda text, n=name: f"{n}: {text}")


def test_two_processes_are_one(tmp_path: Path) -> None:
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": 2}}
    expected = train(str(tmp_path), micro_batch_size=4, **LABELED)
    for part in processes.share(train, 2, str(tmp_path), micro_batch_size=2, deepspeed=block, **LABELED):
        for name, weight in expected.items():
            torch.testing.assert_close(part[name], weight, **EXACT, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_the_loss_is_that_of_the_scheduler_of_diffusers(
    tmp_path: Path, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusers = pytest.importorskip("diffusers")
    trainer = make_trainer(tmp_path, prediction=prediction, timesteps=1000, weighting="min_snr")
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    engine = trainer.model.module
    handle = engine.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    rows = torch.randn(50, 3)
    loss = trainer.loss({"rows": rows, "draw": torch.arange(50), "num_items_in_batch": 50.0})
    handle.remove()
    noisy, time = calls[0]
    assert time.dtype == torch.float32 and len(time.unique()) > 40
    timesteps = (time * 1000).round().long()
    scheduler = diffusers.DDPMScheduler()
    levels = scheduler.alphas_cumprod[timesteps]
    noise = (noisy - levels[:, None].sqrt() * rows) / (1 - levels[:, None]).sqrt()
    assert noise.std().item() == pytest.approx(1, abs=0.15)
    target = {"epsilon": noise, "x0": rows, "v": scheduler.get_velocity(rows, noise, timesteps)}[prediction]
    ratio = levels / (1 - levels)
    divisor = {"epsilon": ratio, "x0": torch.ones_like(ratio), "v": ratio + 1}[prediction]
    errors = (engine(noisy, time) - target).square().mean(1) * ratio.clamp(max=5) / divisor
    torch.testing.assert_close(loss, errors.mean(), rtol=1e-3, atol=1e-5)
    trainer.close()


def test_labels_are_dropped_in_training_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **LABELED)
    labels = torch.arange(4000) % 4
    batch = {"rows": torch.randn(4000, 3), "labels": labels, "draw": torch.arange(4000), "num_items_in_batch": 4000.0}
    seen: list[torch.Tensor] = []
    handle = trainer.model.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    trainer.loss(batch)
    trainer.model.eval()
    trainer.loss(batch)
    handle.remove()
    dropped = seen[0] == -100
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    assert torch.equal(seen[1], labels)
    assert trainer.targets({"rows": torch.zeros(3, 3), "labels": torch.tensor([-100, 1, -100])}) == 3
    trainer.close()


def test_guidance_goes_on_from_no_label_to_the_label(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **LABELED, sampling_steps=1)
    trainer.train()
    labels, none = torch.tensor([0, 1, 2, 3]), torch.full((4,), -100)
    conditional, unconditional = trainer.sample(4, labels), trainer.sample(4, none)
    assert not torch.allclose(conditional, unconditional, atol=1e-4)
    torch.testing.assert_close(trainer.sample(4), conditional)
    for scale in (0.0, 3.0):  # of one step, the row is linear in what is predicted
        trainer.config.guidance_scale = scale
        expected = unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(trainer.sample(4, labels), expected, rtol=1e-3, atol=1e-3)
    trainer.close()


@pytest.mark.parametrize("keys", [{}, {"sampler": "ddpm"}, {"eta": 0.5, "clip_sample": 1.5}])
def test_samples_are_of_the_average_and_leave_no_trace(tmp_path: Path, keys: dict[str, Any]) -> None:
    trainer = make_trainer(tmp_path, callbacks=[{"type": "ema", "decay": 0.5, "warmup": False}], train_iters=2, **keys)
    trainer.train()
    state = torch.get_rng_state()
    rows = trainer.sample(5)
    assert rows.shape == (5, 3) and rows.dtype == torch.float32
    assert torch.equal(rows, trainer.sample(5))
    torch.testing.assert_close(rows[:3], trainer.sample(3))
    assert torch.equal(state, torch.get_rng_state())
    if "clip_sample" in keys:
        assert rows.abs().max() <= 1.5
    average = trainer.listeners.pop("ema")
    assert not torch.equal(rows, trainer.sample(5))
    for name, parameter in trainer.model.module.named_parameters():
        parameter.data.copy_(average.weights[name])
    assert torch.allclose(rows, trainer.sample(5))
    trainer.close()


def sampled(folder: str, stage: int, micro: int) -> torch.Tensor:
    block = {"gradient_clipping": 0, "zero_optimization": {"stage": stage}}
    trainer = make_trainer(
        Path(folder), deepspeed=block, micro_batch_size=micro, **LABELED, callbacks=[{"type": "ema", "decay": 0.5}]
    )
    trainer.train()
    rows: torch.Tensor = trainer.sample(6)
    trainer.close()
    return rows


def test_partitioned_weights_sample_the_same(tmp_path: Path) -> None:
    expected = sampled(str(tmp_path), 0, 4)
    for part in processes.share(sampled, 2, str(tmp_path), 3, 2):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


def test_in_16_bits_the_time_stays_exact(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, model={"type": "time_mlp", "sizes": [3, 8, 3], "dtype": "bf16"}, timesteps=1000)
    times: list[torch.Tensor] = []
    trainer.model.module.register_forward_pre_hook(lambda module, inputs: times.append(inputs[1]))
    loss = trainer.loss({"rows": torch.randn(9, 3), "draw": torch.arange(9), "num_items_in_batch": 9.0})
    assert loss.dtype == torch.float32
    torch.testing.assert_close(times[0] * 1000, (times[0] * 1000).round(), rtol=0, atol=1e-3)
    trainer.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sigma_data": 1}, "sigma_data: is for weighting: edm; remove it"),
        ({"noise_schedule": "cosine", "beta_end": 0.1}, "beta_end: is for noise_schedule: linear or quadratic"),
        ({"sampler": "ddpm", "eta": 0.5}, "eta: is for sampler: ddim; remove it"),
        ({"sampling_steps": 101}, "sampling_steps: 101 is more than timesteps: 100"),
        ({"beta_start": 0.5}, "beta_start: 0.5 is above beta_end: 0.02"),
        ({"guidance_scale": 3}, "guidance_scale: needs a network that is trained without labels too"),
        ({"prediction": "noise"}, "'epsilon', 'v' or 'x0'"),
        ({"label_dropout": 0.1}, "label_dropout: the network reads no labels; set model.num_labels"),
        ({"model": {"type": "time_mlp", "sizes": [4, 8, 4]}}, "model: cannot be computed for rows of shape"),
        ({"model": {"type": "time_mlp", "sizes": [3, 8, 4]}}, "rows of shape .3. become .4."),
        ({"model": {"type": "time_mlp", "sizes": [3, 8, 3], "num_labels": 3}}, "expected int64 labels from 0 to 2"),
        ({"model": {"type": "mlp", "sizes": [3, 8, 3]}}, "is not accepted here; there are: time_mlp, unet, diffusers"),
    ],
)
def test_refusals(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, **keys)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_column_that_is_missing(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((4, 3), np.float32))
    np.save(tmp_path / "numbers.npy", np.zeros(4, np.float32))
    for file, more, message in (
        ("rows.npy", LABELED, "no column labels; there are rows"),
        ("numbers.npy", {}, "rows are single numbers"),
    ):
        with pytest.raises(InputError, match=message):
            make_trainer(tmp_path, data={"sources": [str(tmp_path / file)]}, **more)
