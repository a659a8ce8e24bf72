"""Base of the trainers of autoencoders whose rows have a Gaussian posterior of latents."""

import torch
from torch import Tensor

from arctic_training.data.batching.loader import Batch
from arctic_training.errors.types import ModelError
from arctic_training.loss.variational import (
    Reconstruction,
    draw_latents,
    importance_weighted_bounds,
    log_importance_weights,
    reconstruction_losses,
)
from arctic_training.model.autoencoder_factory import AutoencoderFactory
from arctic_training.objectives.generative import GenerativeTrainer

_DECODED_AT_ONCE = 4096
"""Rows that the decoder computes at once for the importance-weighted bound, or a micro-batch if that is more."""


class LatentTrainer(GenerativeTrainer):
    """Trains an autoencoder: the encoder maps a row to means and log variances of its latents, the decoder maps latents
    to a row. A subclass states ``name``, and defines `loss` and `generate_rows`."""

    model_factory_type = AutoencoderFactory
    num_latents: int
    """Latents of a row, known once `check` has run."""

    def check(self) -> None:
        """Raises `ModelError` for networks that do not fit the rows."""
        super().check()
        for _, encoded in self.row_outputs(lambda rows: self.model(rows=self.cast(rows)), key="model.encoder"):
            if encoded.dim() != 2 or encoded.shape[1] % 2:
                raise ModelError(
                    f"model.encoder: rows become {list(encoded.shape[1:])}; expected [2 x latents], means and log "
                    "variances"
                )
            self.num_latents = encoded.shape[1] // 2
        latents = f"{self.num_latents} latents"
        self.check_output(lambda rows: self.decode(self.encode(rows)[0]), key="model.decoder", inputs=latents)

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns means and log variances of the posterior of ``rows`` ``[N, ...]``: float32 ``[N, L]`` each."""
        means, log_variances = self.model(rows=self.cast(rows)).float().chunk(2, dim=1)
        return means, log_variances

    def decode(self, latents: Tensor) -> Tensor:
        """Returns the decoder's output of ``latents`` ``[N, L]``: float32 ``[N, ...]``."""
        outputs: Tensor = self.model(latents=self.cast(latents)).float()
        return outputs

    def importance_weighted(
        self, batch: Batch, means: Tensor, log_variances: Tensor, kind: Reconstruction, *, samples: int, stream: int
    ) -> Tensor:
        """Returns the importance-weighted bound on -log p of every row, by ``samples`` draws of its latents: float64
        ``[N]``, in nats for ``kind`` bernoulli; see `reconstruction_losses` for the others.

        ``means`` and ``log_variances``, ``[N, L]``, are those of the posterior. The draws depend on the row and on
        ``stream``, and not on how many are decoded at once.
        """
        rows, draw, weights = batch["rows"].float(), batch["draw"], list[Tensor]()
        at_once = max(1, _DECODED_AT_ONCE // self.config.micro_batch_size)
        for numbers in torch.split(torch.arange(samples, device=draw.device), at_once):
            keys = draw[:, None] * samples + numbers
            noise = self.normal(keys.flatten(), self.num_latents, stream=stream).view(*keys.shape, -1)
            latents = draw_latents(means[:, None], log_variances[:, None], noise)
            repeated = rows.repeat_interleave(len(numbers), dim=0)
            losses = reconstruction_losses(kind, self.decode(latents.flatten(0, 1)), repeated)
            weights.append(log_importance_weights(losses.view(len(rows), len(numbers)), noise, means, log_variances))
        return importance_weighted_bounds(torch.cat(weights, dim=1))
