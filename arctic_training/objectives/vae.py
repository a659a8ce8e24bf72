"""Variational autoencoders: a row is drawn of a few latents, by the evidence lower bound."""

import torch
from torch import Tensor

from arctic_training.data.batching.loader import Batch
from arctic_training.errors.types import DataError
from arctic_training.loss.variational import (
    draw_latents,
    free_bits,
    kl_divergences,
    kl_weight,
    reconstruction_losses,
)
from arctic_training.metrics import column_variances
from arctic_training.objectives.latent import LatentTrainer
from arctic_training.objectives.vae_config import VAEConfig

_TRAINING, _EVALUATION, _IMPORTANCE, _SAMPLES = range(4)
"""Streams of noise: for steps, for the bound of an evaluation, for its importance-weighted bound, for samples."""

_ACTIVE_VARIANCE = 0.01
"""Variance of a latent's posterior mean over an evaluation set above which it is active (Burda et al. 2016)."""


class VAETrainer(LatentTrainer):
    """Trains a variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114).

    A batch has ``rows``, ``[N, ...]``, and ``draw``, int64 ``[N]``, from which the noise of the latents is derived. The
    loss of a step is the mean over the rows of the window, and free bits are compared with the mean divergences of the
    window, so that neither depends on how the global batch is split. An evaluation measures the negative evidence lower
    bound, whatever ``beta`` and ``free_bits``.
    """

    name = "vae"
    config_type = VAEConfig
    config: VAEConfig

    def check_data(self) -> None:
        """Raises `DataError` for rows that do not suit ``reconstruction``."""
        super().check_data()
        for name, columns in self.tables("rows").items():
            rows = columns["rows"]
            if self.config.reconstruction == "bernoulli" and not ((rows >= 0) & (rows <= 1)).all():
                raise DataError(
                    f"{name}: values from {rows.min().item():g} to {rows.max().item():g}, and reconstruction: "
                    "bernoulli needs values from 0 to 1; scale them, or set reconstruction: mse"
                )

    @property
    def kl_weight(self) -> float:
        """The weight of the divergence at the current step."""
        config = self.config
        steps = config.kl_warmup(self.training_horizon, self.steps_per_epoch)
        return kl_weight(config.kl_annealing, self.progress.step, steps=steps, beta=config.beta)

    @property
    def eval_metrics(self) -> tuple[str, ...]:
        bound = ("importance_weighted",) if self.config.importance_samples else ()
        return ("reconstruction", "kl", "active_latents", *bound)

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the rows of the window: a float32 scalar, in nats for
        ``reconstruction: bernoulli``. In an evaluation it is the negative evidence lower bound."""
        config, trains = self.config, torch.is_grad_enabled()
        rows: Tensor = batch["rows"]
        items: float = batch["num_items_in_batch"]
        means, log_variances = self.encode(rows)
        noise = self.normal(batch["draw"], self.num_latents, stream=_TRAINING if trains else _EVALUATION)
        outputs = self.decode(draw_latents(means, log_variances, noise))
        reconstruction = reconstruction_losses(config.reconstruction, outputs, rows.float()).sum() / items
        divergences = kl_divergences(means, log_variances).sum(0) / items
        self.record("reconstruction", reconstruction)
        self.record("kl", divergences.sum())
        if not trains:
            self.metrics.kept.append(means)
            if samples := config.importance_samples:
                bounds = self.importance_weighted(
                    batch, means, log_variances, config.reconstruction, samples=samples, stream=_IMPORTANCE
                )
                self.record("importance_weighted", bounds.sum() / items)
            return reconstruction + divergences.sum()
        weight = self.kl_weight
        self.record("kl_weight", weight)
        if not config.free_bits:
            return reconstruction + weight * divergences.sum()
        return reconstruction + weight * free_bits(divergences, self.window_mean(self.divergences), config.free_bits)

    def divergences(self, batch: Batch) -> Tensor:
        """Returns the batch's part of the mean divergence of each latent over the rows of the window: float32 ``[L]``,
        in nats."""
        items: float = batch["num_items_in_batch"]
        return kl_divergences(*self.encode(batch["rows"])).sum(0) / items

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Counts the latents that are active: those whose posterior mean differs from row to row."""
        active = column_variances(torch.cat(self.metrics.kept)) > _ACTIVE_VARIANCE
        return {**means, "active_latents": float(active.sum())}

    def generate_rows(self, draw: Tensor) -> Tensor:
        """Returns rows decoded of draws of the prior, float32 ``[n, ...]``: with ``reconstruction: bernoulli``
        probabilities."""
        outputs = self.decode(self.normal(draw, self.num_latents, stream=_SAMPLES))
        return outputs.sigmoid() if self.config.reconstruction == "bernoulli" else outputs
