"""Diffusion models: a network that learns to denoise, and samplers that make rows of noise with it."""

import functools

import torch
from torch import Tensor

from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.checkpoint.huggingface import HFCheckpointEngine
from arctic_training.data.batching.loader import Batch
from arctic_training.errors.types import DataError
from arctic_training.loss.diffusion import (
    add_noise,
    denoised_rows,
    diffusion_loss_weights,
    diffusion_targets,
    draw_timesteps,
    noise_betas,
    noise_levels,
    sample_diffusion,
)
from arctic_training.model.diffusers_factory import DiffusersFactory
from arctic_training.model.time_mlp_factory import TimeMLPFactory
from arctic_training.model.unet_factory import UNetFactory
from arctic_training.objectives.conditional import NO_CONDITION, Condition, ConditionalTrainer
from arctic_training.objectives.diffusion_config import DiffusionConfig

_TIMESTEPS, _NOISE, _, _SAMPLES = range(4)
"""Streams of noise: for timesteps, for the noise of rows, for ``label_dropout``, and from the last one on for the steps
of a sampler."""


class DiffusionTrainer(ConditionalTrainer):
    """Trains a network to denoise rows, and samples rows from noise by it (DDPM, DDIM).

    A batch has ``rows``, ``[N, ...]``, and ``draw``, int64 ``[N]``, from which the timestep and the noise of each row
    are derived, so that they do not depend on the split of the global batch. A network with ``num_labels`` reads
    ``labels`` too: int64 ``[N]``, -100 for none.
    """

    name = "diffusion"
    config: DiffusionConfig
    model_factory_type = (TimeMLPFactory, UNetFactory, DiffusersFactory)
    checkpoint_engine_type = (DeepSpeedCheckpointEngine, HFCheckpointEngine)
    eval_metrics = ()

    @functools.cached_property
    def levels(self) -> Tensor:
        """The share of a row in the variance at each timestep: float64 ``[timesteps]``."""
        config = self.config
        betas = noise_betas(
            config.noise_schedule,
            config.timesteps,
            start=config.beta_start,
            end=config.beta_end,
            offset=config.cosine_offset,
        )
        return noise_levels(betas).to(self.device)

    def check_data(self) -> None:
        """Raises `DataError` for data that are no rows of numbers."""
        super().check_data()
        for name, columns in self.tables("rows").items():
            if columns["rows"].dim() < 2:
                raise DataError(f"{name}: rows are single numbers; expected [rows, ...]")

    def check(self) -> None:
        """Raises `ModelError` for a network that does not map rows to rows of their shape."""
        super().check()
        nothing = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.check_output(lambda rows: self.predict(rows, nothing, nothing if self.num_labels else None))

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the weighted mean squared error over the window: a float32 scalar."""
        config, rows, draw = self.config, batch["rows"].float(), batch["draw"]
        timesteps = draw_timesteps(
            self.uniform(draw, stream=_TIMESTEPS),
            config.timesteps,
            config.timestep_sampling,
            mean=config.logit_mean,
            std=config.logit_std,
            mode_scale=config.mode_scale,
        )
        noise, levels = self.normal(draw, rows.shape[1:], stream=_NOISE), self.levels[timesteps]
        output = self.predict(add_noise(rows, noise, levels), timesteps, self.labels(batch))
        errors = (output - diffusion_targets(config.prediction, rows, noise, levels)).square().flatten(1).mean(1)
        weights = diffusion_loss_weights(
            config.weighting, config.prediction, levels, gamma=config.min_snr_gamma, sigma_data=config.sigma_data
        )
        return (errors * weights).sum().float().div(batch["num_items_in_batch"])

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """Returns the network's output at rows ``[N, ...]`` of ``timesteps``, int64 ``[N]``: float32 ``[N, ...]``.

        ``labels`` are int64 ``[N]``, -100 for none, of a network that reads them, else None.
        """
        time = (timesteps / self.config.timesteps).float()
        output: Tensor = self.model(self.cast(noisy), time, *(() if labels is None else (labels,)))
        return output.float()

    def generate_rows(self, draw: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        config, shape = self.config, self.row_shape

        def denoised(noisy: Tensor, timestep: int) -> Tensor:
            timesteps = torch.full_like(draw, timestep)
            output = condition.guided(lambda labels: self.predict(noisy, timesteps, labels))
            rows = denoised_rows(config.prediction, output, noisy, self.levels[timesteps])
            return rows if config.clip_sample is None else rows.clamp(-config.clip_sample, config.clip_sample)

        return sample_diffusion(
            denoised,
            lambda number: self.normal(draw, shape, stream=_SAMPLES + number),
            self.levels,
            config.sampling_steps,
            eta=1.0 if config.sampler == "ddpm" else config.eta,
        )
