"""The keys of the trainer of energy-based models."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.engine.config import zero_stage

_CHAINS = OnlyWith("method", "cd", "pcd")
_KEPT = OnlyWith("method", "pcd")
_MATCHING = OnlyWith("method", "score_matching")


class EnergyConfig(TrainerConfig):
    """Keys of the trainer `energy`."""

    method: Literal["cd", "pcd", "score_matching"] = "cd"
    """cd: contrastive divergence, chains of samples that start at the data; pcd: chains that go on from earlier ones;
    score_matching: without samples, by the gradient of the density."""
    mcmc_steps: Annotated[HumanInt, _CHAINS] = Field(default=20, ge=1)
    """Steps of the chains in training."""
    step_size: HumanFloat = Field(default=0.01, gt=0)
    """Size of a step of a chain: half of it times the gradient is subtracted."""
    noise_scale: HumanFloat | None = Field(default=None, ge=0)
    """Standard deviation of the noise of a step; by default the square root of `step_size`, with which a chain of small
    steps samples the model's own density. Less noise samples a sharper one."""
    mala: bool = False
    """Accept or reject each step (Metropolis correction), so that chains sample the model's density exactly."""
    max_gradient: HumanFloat = Field(default=0.0, ge=0)
    """Norm to which larger gradients of a step are scaled down; 0: none is."""
    init_scale: HumanFloat = Field(default=1.0, gt=0)
    """Standard deviation of the normal numbers that new chains start from, in pcd and in samples."""
    replay_size: Annotated[HumanInt, _KEPT] = Field(default=10_000, ge=1)
    """Ends of chains that pcd keeps, of all ranks together: the newest ones."""
    replay_share: Annotated[HumanFloat, _KEPT] = Field(default=0.95, ge=0, le=1)
    """Share of the chains of pcd that start from a kept one; the others start anew."""
    energy_regularization: Annotated[HumanFloat, _CHAINS] = Field(default=0.0, ge=0)
    """Weight of the squared energies of data and samples, which keeps energies near 0."""
    score_matching: Annotated[Literal["exact", "sliced", "denoising"], _MATCHING] = "exact"
    """exact: by the trace of the second derivatives, a pass for each number of a row; sliced: by one random direction
    for each row; denoising: by the gradient at noisy data, whose density is learned instead."""
    denoising_sigma: Annotated[HumanFloat, _MATCHING, OnlyWith("score_matching", "denoising")] = Field(
        default=0.1, gt=0
    )
    """Standard deviation of the noise of `score_matching: denoising`."""
    sample_steps: HumanInt = Field(default=1000, ge=1)
    """Steps of the chains that samples for pictures are the ends of."""

    @model_validator(mode="after")
    def _check_combination(self) -> "EnergyConfig":
        if self.mala and self.noise_scale == 0:
            raise ValueError("mala: a chain without noise cannot be corrected; give noise_scale a number above 0")
        if self.method == "score_matching":
            if zero_stage(self.deepspeed, 1) == 3:
                raise ValueError(
                    "method: score_matching differentiates a gradient, which ZeRO stage 3 does not support: set stage "
                    "0, 1 or 2 in deepspeed.zero_optimization, or use cd or pcd"
                )
            if (activation := getattr(self.model, "activation", "")) in ("relu", "leaky_relu"):
                raise ValueError(
                    f"model.activation: {activation} has no second derivative, which score_matching needs; use silu, "
                    "gelu or tanh"
                )
        return self
