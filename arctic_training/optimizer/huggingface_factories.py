"""Optimizers of transformers."""

import torch
from pydantic import Field
from torch import nn

from arctic_training.config.sections.optimizer import Decay, OptimizerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.optimizer.factory import OptimizerFactory, parameter_groups


class AdafactorConfig(OptimizerConfig):
    """The optimizer section for Adafactor."""

    clip_threshold: HumanFloat = Field(default=1.0, gt=0)
    """Root mean square above which a step is scaled down."""
    decay_rate: HumanFloat = Field(default=-0.8, lt=0)
    """Exponent of the running mean of squares: after t steps it keeps a share 1 - t ** decay_rate."""
    beta1: Decay | None = None
    """Decay of a running mean of the gradients; null: none is kept."""
    scale_parameter: bool = False
    """Scale the step by the root mean square of the weights."""

    @property
    def moments(self) -> int:
        return int(self.beta1 is not None)

    def highest_stage(self, dtype: str) -> int:
        # it keeps sums over rows and columns of matrices, which higher stages partition
        return 0


class AdafactorFactory(OptimizerFactory[AdafactorConfig]):
    """Makes Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) with the recipe's schedule; at ZeRO stage 0 only."""

    name = "adafactor"

    def create_optimizer(self, model: nn.Module, config: AdafactorConfig) -> torch.optim.Optimizer:
        from transformers.optimization import Adafactor

        optimizer: torch.optim.Optimizer = Adafactor(
            parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            clip_threshold=config.clip_threshold,
            decay_rate=config.decay_rate,
            beta1=config.beta1,
            scale_parameter=config.scale_parameter,
            relative_step=False,
        )
        return optimizer
