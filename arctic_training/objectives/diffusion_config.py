"""The keys of the trainer of diffusion models."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.loss.diffusion import NoiseSchedule, Prediction, TimestepSampling, Weighting
from arctic_training.objectives.conditional import ConditionalConfig


class DiffusionConfig(ConditionalConfig):
    """Keys of the trainer `diffusion`."""

    prediction: Prediction = "epsilon"
    """What the network predicts of a noisy row: epsilon (its noise), x0 (the row) or v (a mixture of both)."""
    noise_schedule: NoiseSchedule = "linear"
    """How much noise each timestep adds: linear, cosine, quadratic or sqrt."""
    timesteps: HumanInt = Field(default=1000, ge=1)
    """Timesteps from a row to pure noise."""
    beta_start: Annotated[HumanFloat, OnlyWith("noise_schedule", "linear", "quadratic")] = Field(
        default=1e-4, gt=0, lt=1
    )
    """Variance that the first of 1,000 timesteps adds; for linear and quadratic."""
    beta_end: Annotated[HumanFloat, OnlyWith("noise_schedule", "linear", "quadratic")] = Field(default=0.02, gt=0, lt=1)
    """Variance that the last of 1,000 timesteps adds; for linear and quadratic."""
    cosine_offset: Annotated[HumanFloat, OnlyWith("noise_schedule", "cosine")] = Field(default=0.008, ge=0, lt=1)
    """Where the schedule cosine begins, as a share of the timesteps."""
    timestep_sampling: TimestepSampling = "uniform"
    """How often each timestep is trained on: uniform, or by logit_normal or mode more often those in the middle."""
    logit_mean: Annotated[HumanFloat, OnlyWith("timestep_sampling", "logit_normal")] = 0.0
    """Mean of the logit of the time, from 0 for the row to 1 for noise; for logit_normal."""
    logit_std: Annotated[HumanFloat, OnlyWith("timestep_sampling", "logit_normal")] = Field(default=1.0, gt=0)
    """Standard deviation of the logit of the time; for logit_normal."""
    mode_scale: Annotated[HumanFloat, OnlyWith("timestep_sampling", "mode")] = Field(default=1.29, ge=-1, le=1.75)
    """How much more often times in the middle are drawn than others; for mode."""
    weighting: Weighting = "uniform"
    """Weight of each timestep in the loss: uniform, snr, min_snr or edm."""
    min_snr_gamma: Annotated[HumanFloat, OnlyWith("weighting", "min_snr")] = Field(default=5.0, gt=0)
    """The ratio of signal and noise from which on weights no longer rise; for min_snr."""
    sigma_data: Annotated[HumanFloat, OnlyWith("weighting", "edm")] = Field(default=0.5, gt=0)
    """Standard deviation of the data; for edm."""
    sampler: Annotated[Literal["ddim", "ddpm"], RESUME_SAFE] = "ddim"
    """The sampler: ddim, or ddpm, which adds noise at each step."""
    sampling_steps: Annotated[HumanInt, RESUME_SAFE] = Field(default=50, ge=1)
    """Steps of the sampler, at most ``timesteps``."""
    eta: Annotated[HumanFloat, RESUME_SAFE, OnlyWith("sampler", "ddim")] = Field(default=0.0, ge=0, le=1)
    """How much noise ddim adds at each step: 0 is none, and 1 as much as ddpm."""
    clip_sample: Annotated[HumanFloat | None, RESUME_SAFE] = Field(default=None, gt=0)
    """The largest magnitude of a number of the data, by which the sampler clips what it predicts the row to be."""

    @model_validator(mode="after")
    def _check_range(self) -> "DiffusionConfig":
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start: {self.beta_start:g} is above beta_end: {self.beta_end:g}")
        if self.sampling_steps > self.timesteps:
            raise ValueError(f"sampling_steps: {self.sampling_steps} is more than timesteps: {self.timesteps}")
        return self
