"""Variational autoencoders: a row is drawn of a few latents, by the evidence lower bound."""

import torch
from torch import Tensor

from arctic_training.data.batching.loader import Batch
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import DataError, ModelError
from arctic_training.loss.variational import (
    draw_latents,
    free_bits,
    importance_weighted_bounds,
    kl_divergences,
    kl_weight,
    log_importance_weights,
    reconstruction_losses,
)
from arctic_training.model.autoencoder_factory import AutoencoderFactory
from arctic_training.objectives.generative import GenerativeTrainer
from arctic_training.objectives.vae_config import VAEConfig
from arctic_training.state import eval_mode

_TRAINING, _EVALUATION, _IMPORTANCE, _SAMPLES = range(4)
"""Streams of noise: for steps, for the bound of an evaluation, for its importance-weighted bound, for samples."""

_DECODED_AT_ONCE = 4096
"""Rows that the decoder computes at once for the importance-weighted bound, or a micro-batch if that is more."""

_ACTIVE_VARIANCE = 0.01
"""Variance of a latent's posterior mean over an evaluation set above which it is active (Burda et al. 2016)."""


class VAETrainer(GenerativeTrainer):
    """Trains a variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114).

    A batch has ``rows``, ``[N, ...]``, and ``draw``, int64 ``[N]``, from which the noise of the latents is derived. The
    loss of a step is the mean over the rows of the window, and free bits are compared with the mean divergences of the
    window, so that neither depends on how the global batch is split. An evaluation measures the negative evidence lower
    bound, whatever ``beta`` and ``free_bits``.
    """

    name = "vae"
    config_type = VAEConfig
    config: VAEConfig
    model_factory_type = AutoencoderFactory
    _num_latents: int
    _window_divergences: Tensor

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

    def check(self) -> None:
        """Raises `ModelError` for networks that do not fit the rows."""
        super().check()
        for _, encoded in self.row_outputs(lambda rows: self.model(rows=self.cast(rows)), key="model.encoder"):
            if encoded.dim() != 2 or encoded.shape[1] % 2:
                raise ModelError(
                    f"model.encoder: rows become {list(encoded.shape[1:])}; expected [2 x latents], means and log "
                    "variances"
                )
            self._num_latents = encoded.shape[1] // 2
        latents = f"{self._num_latents} latents"
        self.check_output(lambda rows: self.decode(self.encode(rows)[0]), key="model.decoder", inputs=latents)

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
        noise = self.normal(batch["draw"], self._num_latents, stream=_TRAINING if trains else _EVALUATION)
        outputs = self.decode(draw_latents(means, log_variances, noise))
        reconstruction = reconstruction_losses(config.reconstruction, outputs, rows.float()).sum() / items
        divergences = kl_divergences(means, log_variances).sum(0) / items
        self.record("reconstruction", reconstruction)
        self.record("kl", divergences.sum())
        if not trains:
            self._record_evaluation(batch, means, log_variances)
            return reconstruction + divergences.sum()
        weight = self.kl_weight
        self.record("kl_weight", weight)
        if config.free_bits:
            return reconstruction + weight * free_bits(
                divergences, self.window_divergences(divergences), config.free_bits
            )
        return reconstruction + weight * divergences.sum()

    @torch.no_grad()
    def window_divergences(self, divergences: Tensor) -> Tensor:
        """Returns the mean divergence of each latent over the rows of the window, on all ranks: float32 ``[L]``, nats.

        ``divergences`` ``[L]`` are the sums over the current micro-batch, divided by its ``num_items_in_batch``. Of a
        window of several, all are encoded with the first one, in evaluation mode, before any is trained on.
        """
        size = max(self.window.size, 1)
        if size == 1:
            return collectives.all_reduce(divergences.detach().clone()) / process_group.world_size()
        if self.window.index == 0:
            with eval_mode([self.model.module]):
                parts = [
                    kl_divergences(*self.encode(one["rows"])).sum(0) / one["num_items_in_batch"]
                    for one in self.window.batches
                ]
            total = collectives.all_reduce(torch.stack(parts).sum(0))
            self._window_divergences = total / (size * process_group.world_size())
        return self._window_divergences

    def _record_evaluation(self, batch: Batch, means: Tensor, log_variances: Tensor) -> None:
        items = batch["num_items_in_batch"]
        for name, moments in (("mean", means), ("square", means.square())):
            for number, moment in enumerate((moments.sum(0) / items).unbind()):
                self.record(f"{name}#{number}", moment)
        if self.config.importance_samples:
            bounds = self.importance_weighted(batch, means, log_variances)
            self.record("importance_weighted", bounds.sum() / items)

    def importance_weighted(self, batch: Batch, means: Tensor, log_variances: Tensor) -> Tensor:
        """Returns the importance-weighted bound on -log p of every row: float64 ``[N]``; the posterior's ``means`` and
        ``log_variances`` are ``[N, L]``. The draws depend on the row, and not on how many are decoded at once."""
        config, rows, draw, weights = self.config, batch["rows"].float(), batch["draw"], list[Tensor]()
        count, at_once = config.importance_samples, max(1, _DECODED_AT_ONCE // config.micro_batch_size)
        for first in range(0, count, at_once):
            numbers = torch.arange(first, min(first + at_once, count), device=draw.device)
            keys = draw[:, None] * count + numbers
            noise = self.normal(keys.flatten(), self._num_latents, stream=_IMPORTANCE).view(*keys.shape, -1)
            latents = draw_latents(means[:, None], log_variances[:, None], noise)
            repeated = rows.repeat_interleave(len(numbers), dim=0)
            losses = reconstruction_losses(config.reconstruction, self.decode(latents.flatten(0, 1)), repeated)
            weights.append(log_importance_weights(losses.view(len(rows), len(numbers)), noise, means, log_variances))
        return importance_weighted_bounds(torch.cat(weights, dim=1))

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Counts the latents that are active: those whose posterior mean differs from row to row."""
        count = sum(name.startswith("mean#") for name in means)
        moments = [(means.pop(f"mean#{number}"), means.pop(f"square#{number}")) for number in range(count)]
        active = sum(square - mean**2 > _ACTIVE_VARIANCE for mean, square in moments)
        return {**means, "active_latents": float(active)}

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns means and log variances of the posterior of ``rows`` ``[N, ...]``: float32 ``[N, L]`` each."""
        means, log_variances = self.model(rows=self.cast(rows)).float().chunk(2, dim=1)
        return means, log_variances

    def decode(self, latents: Tensor) -> Tensor:
        """Returns the decoder's output of ``latents`` ``[N, L]``: float32 ``[N, ...]``."""
        outputs: Tensor = self.model(latents=self.cast(latents)).float()
        return outputs

    def generate_rows(self, draw: Tensor) -> Tensor:
        """Returns rows decoded of draws of the prior, float32 ``[n, ...]``: with ``reconstruction: bernoulli``
        probabilities."""
        outputs = self.decode(self.normal(draw, self._num_latents, stream=_SAMPLES))
        return outputs.sigmoid() if self.config.reconstruction == "bernoulli" else outputs
