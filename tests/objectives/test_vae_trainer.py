"""Variational autoencoders: the bound by torch.distributions, free bits of the window, exact evaluations, samples."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, distributions

from arctic_training import Autoencoder, VAETrainer, get_config
from arctic_training.data.batching.noise import normal
from arctic_training.errors.types import DataError, ModelError
from arctic_training.objectives.vae_config import VAEConfig
from arctic_training.testing import check_cut
from tests import processes
from tests.objectives import tiny_runs
from tests.trainer.weights import moved, same

MODEL: dict[str, Any] = {"type": "autoencoder", "encoder": {"sizes": [6, 8, 4]}, "decoder": {"sizes": [2, 8, 6]}}
STANDARD = distributions.Normal(torch.zeros(()), torch.ones(()))


def sections(folder: Path) -> dict[str, Any]:
    """Eleven rows of six bits, so that the last window is short and one of its micro-batches too."""
    file = folder / "bits.npy"
    if not file.exists():
        np.save(file, np.random.default_rng(0).integers(0, 2, size=(11, 6)).astype(np.float32))
    return {"model": dict(MODEL), "data": {"sources": [str(file)], "eval_sources": [str(file)]}}


def make_trainer(folder: Path, **keys: Any) -> Any:
    return tiny_runs.make_trainer(folder, sections(folder), type="vae", **keys)


def train(folder: str, **keys: Any) -> dict[str, Tensor]:
    return tiny_runs.train(make_trainer(Path(folder), **keys))


def bound(trainer: Any, batch: Any, stream: int) -> tuple[Tensor, Tensor]:
    """Returns -log p(x | z) and the divergence of every latent, by torch.distributions: ``[N]`` and ``[N, L]``."""
    network, rows = trainer.model.module, batch["rows"]
    means, log_variances = network.encoder(rows).chunk(2, dim=1)
    posterior = distributions.Normal(means, log_variances.exp().sqrt())
    latents = posterior.mean + posterior.stddev * normal(batch["draw"], 2, seed=trainer.config.seed, stream=stream)
    decoded = network.decoder(latents)
    kind = trainer.config.reconstruction
    if kind == "bernoulli":
        losses = -distributions.Bernoulli(logits=decoded).log_prob(rows)
    else:
        losses = (decoded - rows).abs() if kind == "mae" else (decoded - rows) ** 2
    return losses.sum(1), distributions.kl_divergence(posterior, STANDARD)


@pytest.mark.parametrize("reconstruction", ["bernoulli", "mse", "mae"])
def test_loss_and_gradient_by_torch_distributions(tmp_path: Path, reconstruction: str) -> None:
    trainer = moved(make_trainer(tmp_path, micro_batch_size=11, reconstruction=reconstruction, beta=0.3))
    batch = next(trainer.train_batches)
    losses, divergences = bound(trainer, batch, stream=0)
    expected = (losses + 0.3 * divergences.sum(1)).mean()
    gradients = torch.autograd.grad(expected, list(trainer.model.module.parameters()))
    loss, actual = tiny_runs.loss_and_gradients(trainer, batch)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for got, gradient in zip(actual, gradients, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-6)
    trainer.close()


FREE = {"free_bits": 0.11, "kl_annealing": "none", "beta": 2.0}
"""One of the two latents is above at the start, the other one below."""


def test_free_bits_are_those_of_the_window(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, micro_batch_size=3, gradient_accumulation_steps=4, **FREE)
    micro_batches = [tiny_runs.loss_and_gradients(trainer, batch, keep=True) for batch in trainer.train_batches]
    pairs = [bound(trainer, one, stream=0) for one in trainer.window.batches]
    losses, divergences = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    means = divergences.mean(0)
    assert len(micro_batches) == 4 and len(losses) == 11
    assert (means > 0.11).tolist() in ([True, False], [False, True])
    assert not torch.allclose(divergences.clamp(min=0.11).mean(0), means.clamp(min=0.11))  # as if it were of each row
    expected = losses.mean() + 2.0 * means.clamp(min=0.11).sum()
    assert sum(loss for loss, _ in micro_batches) / 4 == pytest.approx(expected.item(), rel=1e-5)
    accumulated = micro_batches[-1][1]
    for got, gradient in zip(
        accumulated, torch.autograd.grad(expected, list(trainer.model.module.parameters())), strict=True
    ):
        torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-6)
    trainer.close()


def test_the_cut_of_the_global_batch_changes_nothing(tmp_path: Path) -> None:
    recipe = {"type": "vae", **sections(tmp_path), "micro_batch_size": 4, "optimizer": {"lr": 0.1}, **FREE}
    assert check_cut(recipe, cuts=[(1, 4), (2, 2)]) == 2
    keys: dict[str, Any] = {**FREE, "kl_annealing": "linear", "kl_warmup_steps": 1}
    expected = train(str(tmp_path), micro_batch_size=4, **keys)
    same(expected, train(str(tmp_path), micro_batch_size=1, gradient_accumulation_steps=4, **keys))
    sharded = {"gradient_clipping": 0, "zero_optimization": {"stage": 3}}
    for more in ({"micro_batch_size": 2}, {"gradient_accumulation_steps": 2, "deepspeed": sharded}):
        for part in processes.share(train, 2, str(tmp_path), **keys, **more):  # once without a row
            same(expected, part)


@pytest.mark.parametrize(
    ("keys", "weights"),
    [
        ({}, [3.0] * 6),
        ({"kl_annealing": "linear"}, [0, 1, 2, 3, 3, 3]),
        ({"kl_annealing": "linear", "kl_warmup_steps": 4}, [0, 0.75, 1.5, 2.25, 3, 3]),
        ({"kl_annealing": "linear", "kl_warmup_epochs": 1}, [0, 1, 2, 3, 3, 3]),
        ({"kl_annealing": "linear", "kl_warmup_ratio": 0}, [3.0] * 6),
        ({"kl_annealing": "cyclical", "kl_warmup_ratio": 1}, [0, 3, 2, 0, 3, 2]),
    ],
)
def test_the_weight_follows_the_step(tmp_path: Path, keys: dict[str, Any], weights: list[float]) -> None:
    """Three steps are an epoch."""
    trainer = make_trainer(tmp_path, beta=3, micro_batch_size=4, train_iters=6, train_log_iter_interval=1, **keys)
    trainer.train()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert [one["kl_weight"] for one in logged if "kl_weight" in one] == pytest.approx(weights)
    assert logged[-1].keys() >= {"loss", "reconstruction", "kl"}
    assert logged[-1]["loss"] == pytest.approx(logged[-1]["reconstruction"] + weights[-1] * logged[-1]["kl"], rel=1e-5)
    trainer.close()


def evaluate(folder: str, micro: int) -> dict[str, float]:
    """Neither ``beta`` nor free bits are part of an evaluation."""
    keys = {"beta": 7.0, "free_bits": 5.0, "kl_annealing": "linear", "importance_samples": 5}
    trainer = moved(make_trainer(Path(folder), micro_batch_size=micro, **keys))
    values: dict[str, float] = trainer.evaluate()
    if micro == 11:
        trainer.eval_loaders["eval"].seek(0, 0)
        batch = next(iter(trainer.eval_loaders["eval"]))
        losses, divergences = bound(trainer, batch, stream=1)
        assert values["reconstruction/eval"] == pytest.approx(losses.mean().item(), rel=1e-5)
        assert values["kl/eval"] == pytest.approx(divergences.sum(1).mean().item(), rel=1e-5)
        assert values["loss/eval"] == pytest.approx((losses + divergences.sum(1)).mean().item(), rel=1e-5)
        means = trainer.encode(batch["rows"])[0]
        assert values["active_latents/eval"] == (means.var(0, correction=0) > 0.01).sum()
    trainer.close()
    return values


def test_an_evaluation_is_exact_over_batches_and_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(str(tmp_path), 11)
    names = {"loss", "reconstruction", "kl", "active_latents", "importance_weighted"}
    assert set(expected) == {f"{name}/eval" for name in names}
    assert expected["importance_weighted/eval"] < expected["loss/eval"]
    monkeypatch.setattr("arctic_training.objectives.latent._DECODED_AT_ONCE", 4)
    assert evaluate(str(tmp_path), 2) == pytest.approx(expected, rel=1e-5)  # two of the draws at once
    assert processes.share(evaluate, 2, str(tmp_path), 2) == [pytest.approx(expected, rel=1e-5)] * 2


def test_with_the_true_posterior_the_importance_weighted_bound_is_the_likelihood(tmp_path: Path) -> None:
    """One linear layer each: probabilistic PCA, whose posterior has means that are linear in a row."""
    model = {"encoder": {"sizes": [6, 4]}, "decoder": {"sizes": [2, 6]}}
    trainer = make_trainer(tmp_path, model=model, reconstruction="mse", importance_samples=3, micro_batch_size=4)
    generator = torch.Generator().manual_seed(0)
    columns = torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q * torch.tensor([1.5, 0.4])
    center, precision = torch.rand(6, generator=generator), 1 + columns.square().sum(0) / 0.5
    (encoder,), (decoder,) = trainer.model.module.encoder, trainer.model.module.decoder
    with torch.no_grad():
        decoder.weight.copy_(columns)
        decoder.bias.copy_(center)
        encoder.weight.zero_()[:2] = (columns / 0.5 / precision).T
        encoder.bias[:2] = -(center @ columns) / 0.5 / precision
        encoder.bias[2:] = -precision.log()
    values = trainer.evaluate()
    covariance = columns @ columns.T + 0.5 * torch.eye(6)
    rows = torch.from_numpy(np.load(tmp_path / "bits.npy"))
    log_likelihood = distributions.MultivariateNormal(center, covariance).log_prob(rows).mean().item()
    assert values["importance_weighted/eval"] + 3 * math.log(math.pi) == pytest.approx(-log_likelihood, rel=1e-5)
    trainer.close()


PICTURES: dict[str, Any] = {
    "encoder": {"type": "conv", "shape": [1, 6, 5], "channels": [4, 8], "outputs": 4},
    "decoder": {"type": "conv_decoder", "shape": [1, 6, 5], "channels": [8, 4], "inputs": 2},
}


def test_it_learns_pictures_and_draws_them(tmp_path: Path) -> None:
    """Two pictures, of which samples are made; the callback writes them without a trace."""
    rows = np.zeros((40, 1, 6, 5), np.float32)
    rows[::2, :, :3], rows[1::2, :, :, 3:] = 1, 1
    np.save(tmp_path / "pictures.npy", rows)
    file = str(tmp_path / "pictures.npy")
    trainer = tiny_runs.make_trainer(
        tmp_path,
        {"model": {"type": "autoencoder", **PICTURES}, "data": {"sources": [file], "eval_sources": [file]}},
        type="vae",
        micro_batch_size=40,
        train_iters=150,
        optimizer={"type": "adamw", "lr": 1e-2, "weight_decay": 0},
        scheduler={"name": "constant"},
        evaluate_first=True,
        callbacks=[{"type": "sample_tensors", "every": 150, "count": 6}],
    )
    trainer.train()
    assert trainer.evaluate()["loss/eval"] < 3 < 0.9 * 30 * math.log(2)  # log 2 is the least that is possible
    samples = trainer.sample(6)
    assert samples.shape == (6, 1, 6, 5) and torch.equal(samples, trainer.sample(6))
    nearest = (samples[:, None] - torch.from_numpy(rows[:2])).abs().mean(dim=(2, 3, 4)).min(1)
    assert nearest.values.median() < 0.1 and set(nearest.indices.tolist()) == {0, 1}
    picture = np.array(Image.open(tmp_path / "run" / "samples" / "sample_tensors" / "step_150.png"))
    assert picture.shape == (6, 6 * 5 + 5)
    assert np.array_equal(picture[:, :5], np.round(255 * samples[0, 0].numpy()))
    trainer.close()


def test_a_program_passes_networks_and_rows(tmp_path: Path) -> None:
    quiet = {"output_dir": str(tmp_path / "run"), "loss_log_interval": 0, "logger": {"level": "ERROR"}}
    config = get_config({"type": "vae", "micro_batch_size": 4, "train_iters": 1, **quiet})
    network = Autoencoder(torch.nn.Linear(6, 4), torch.nn.Linear(2, 6))
    trainer = VAETrainer(config, model=network, train_dataset=torch.rand(8, 6))
    before = network.encoder.weight.detach().clone()
    trainer.train()
    assert trainer.sample(3).shape == (3, 6)
    assert not torch.equal(network.encoder.weight, before)
    trainer.close()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kl_annealing": "linear", "kl_warmup_steps": 3, "kl_warmup_epochs": 2}, "both set how long the weight rises"),
        ({"kl_warmup_steps": 3}, "kl_warmup_steps: is for kl_annealing: linear or sigmoid or cyclical; remove it"),
        ({"kl_annealing": "cosine"}, "'none', 'linear', 'sigmoid' or 'cyclical'"),
        ({"free_bits": -1}, "greater than or equal to 0"),
        ({"reconstruction": "gaussian"}, "'bernoulli', 'mse' or 'mae'"),
        ({"model": {"encoder": {"sizes": [6]}, "decoder": {"sizes": [2, 6]}}}, r"encoder"),
        ({"model": {"type": "mlp", "sizes": [6, 4]}}, "'mlp' is not accepted here"),
    ],
)
def test_recipes_that_are_refused(keys: dict[str, Any], message: str) -> None:
    recipe = {"type": "vae", "model": MODEL, "data": {"sources": ["rows.npy"]}, **keys}
    with pytest.raises(ValidationError, match=message):
        VAETrainer.config_type.model_validate(recipe)


def test_a_resolved_recipe_is_a_recipe_again() -> None:
    keys = {"kl_annealing": "linear", "kl_warmup_steps": 3}
    config = VAETrainer.config_type.model_validate(
        {"type": "vae", "model": MODEL, "data": {"sources": ["a.npy"]}, **keys}
    )
    assert isinstance(config, VAEConfig)
    again = VAETrainer.config_type.model_validate(config.dump())
    assert again.dump() == config.dump() and again.kl_warmup(100, 10) == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"encoder": {"sizes": [5, 4]}}, r"model\.encoder: cannot be computed for rows of shape \[6\]"),
        ({"encoder": {"sizes": [6, 5]}}, r"model\.encoder: rows become \[5\]; expected \[2 x latents\]"),
        ({"decoder": {"sizes": [3, 6]}}, r"model\.decoder: cannot be computed for 2 latents"),
        ({"decoder": {"sizes": [2, 7]}}, r"model\.decoder: 2 latents become \[7\]; expected \[6\]"),
    ],
)
def test_networks_that_do_not_fit_are_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_trainer(tmp_path, model=model)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_rows_that_no_coin_has_are_refused(tmp_path: Path) -> None:
    for rows in (np.full((4, 6), 2.0), np.full((4, 6), np.nan)):
        np.save(tmp_path / "other.npy", rows.astype(np.float32))
        with pytest.raises(DataError, match=r"data\.sources: values from .* bernoulli needs values from 0 to 1"):
            make_trainer(tmp_path, data={"sources": [str(tmp_path / "other.npy")]})
    np.savez(tmp_path / "other.npz", points=np.zeros((4, 6), np.float32))
    with pytest.raises(DataError, match=r"data\.sources: no column rows; there are points"):
        make_trainer(tmp_path, data={"sources": [str(tmp_path / "other.npz")]})
