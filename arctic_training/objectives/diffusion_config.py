"""The keys of the trainer of diffusion models."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.loss.diffusion import NoiseSchedule, Prediction, TimestepSampling, Weighting

_ONLY_FOR = {
    "beta_start": ("noise_schedule", ("linear", "quadratic")),
    "beta_end": ("noise_schedule", ("linear", "quadratic")),
    "cosine_offset": ("noise_schedule", ("cosine",)),
    "logit_mean": ("timestep_sampling", ("logit_normal",)),
    "logit_std": ("timestep_sampling", ("logit_normal",)),
    "mode_scale": ("timestep_sampling", ("mode",)),
    "min_snr_gamma": ("weighting", ("min_snr",)),
    "sigma_data": ("weighting", ("edm",)),
    "eta": ("sampler", ("ddim",)),
}
"""Keys that are read with some values of another key only."""


class DiffusionConfig(TrainerConfig):
    """Keys of the trainer `diffusion`."""

    prediction: Prediction = "epsilon"
    """What the network predicts of a noisy row: epsilon (its noise), x0 (the row) or v (a mixture of both)."""
    noise_schedule: NoiseSchedule = "linear"
    """How much noise each timestep adds: linear, cosine, quadratic or sqrt."""
    timesteps: HumanInt = Field(default=1000, ge=1)
    """Timesteps from a row to pure noise."""
    beta_start: HumanFloat = Field(default=1e-4, gt=0, lt=1)
    """Variance that the first of 1,000 timesteps adds; for linear and quadratic."""
    beta_end: HumanFloat = Field(default=0.02, gt=0, lt=1)
    """Variance that the last of 1,000 timesteps adds; for linear and quadratic."""
    cosine_offset: HumanFloat = Field(default=0.008, ge=0, lt=1)
    """Where the schedule cosine begins, as a share of the timesteps."""
    timestep_sampling: TimestepSampling = "uniform"
    """How often each timestep is trained on: uniform, or by logit_normal or mode more often those in the middle."""
    logit_mean: HumanFloat = 0.0
    """Mean of the logit of the time, from 0 for the row to 1 for noise; for logit_normal."""
    logit_std: HumanFloat = Field(default=1.0, gt=0)
    """Standard deviation of the logit of the time; for logit_normal."""
    mode_scale: HumanFloat = Field(default=1.29, ge=-1, le=1.75)
    """How much more often times in the middle are drawn than others; for mode."""
    weighting: Weighting = "uniform"
    """Weight of each timestep in the loss: uniform, snr, min_snr or edm."""
    min_snr_gamma: HumanFloat = Field(default=5.0, gt=0)
    """The ratio of signal and noise from which on weights no longer rise; for min_snr."""
    sigma_data: HumanFloat = Field(default=0.5, gt=0)
    """Standard deviation of the data; for edm."""
    label_dropout: HumanFloat = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that are trained on without their label, which `guidance_scale` needs."""
    sampler: Annotated[Literal["ddim", "ddpm"], RESUME_SAFE] = "ddim"
    """The sampler: ddim, or ddpm, which adds noise at each step."""
    sampling_steps: Annotated[HumanInt, RESUME_SAFE] = Field(default=50, ge=1)
    """Steps of the sampler, at most ``timesteps``."""
    eta: Annotated[HumanFloat, RESUME_SAFE] = Field(default=0.0, ge=0, le=1)
    """How much noise ddim adds at each step: 0 is none, and 1 as much as ddpm."""
    guidance_scale: Annotated[HumanFloat, RESUME_SAFE] = Field(default=1.0, ge=0)
    """How far samples follow their label: what the network predicts without it, plus so many times the difference that
    the label makes."""
    clip_sample: Annotated[HumanFloat | None, RESUME_SAFE] = Field(default=None, gt=0)
    """The largest magnitude of a number of the data, by which the sampler clips what it predicts the row to be."""

    @model_validator(mode="after")
    def _check_combination(self) -> "DiffusionConfig":
        for key, (other, values) in _ONLY_FOR.items():
            if getattr(self, other) not in values and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: is for {other}: {' or '.join(values)}; remove it")
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start: {self.beta_start:g} is above beta_end: {self.beta_end:g}")
        if self.sampling_steps > self.timesteps:
            raise ValueError(f"sampling_steps: {self.sampling_steps} is more than timesteps: {self.timesteps}")
        if self.guidance_scale != 1 and not self.label_dropout:
            raise ValueError(
                "guidance_scale: needs a network that is trained without labels too; set label_dropout: 0.1"
            )
        return self
