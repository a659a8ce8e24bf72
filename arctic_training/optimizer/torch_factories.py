"""Optimizers of torch."""

from typing import Any

import torch
from pydantic import Field
from torch import nn

from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.optimizer.factory import OptimizerFactory, parameter_groups


class AdamConfig(OptimizerConfig):
    """The optimizer section for Adam."""

    betas: tuple[HumanFloat, HumanFloat] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: HumanFloat = Field(default=1e-8, gt=0)
    """Added to the root of the mean square in the denominator."""

    @property
    def moments(self) -> int:
        return 2


class AdamWFactory(OptimizerFactory[AdamConfig]):
    """Makes torch's fused AdamW, for which nothing is compiled at the first start."""

    name = "adamw"
    config_type = AdamConfig

    def create_optimizer(self, model: nn.Module, config: AdamConfig) -> torch.optim.Optimizer:
        return create_fused_adamw(parameter_groups(model, config.weight_decay), config)


def create_fused_adamw(groups: list[dict[str, Any]], config: AdamConfig) -> torch.optim.Optimizer:
    """Returns torch's fused AdamW of ``groups``."""
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


class SGDConfig(OptimizerConfig):
    """The optimizer section for SGD."""

    momentum: HumanFloat = Field(default=0.0, ge=0, lt=1)
    """Share of the last step in the next."""
    nesterov: bool = False
    """Use Nesterov momentum."""

    @property
    def moments(self) -> int:
        return int(self.momentum > 0)


class SGDFactory(OptimizerFactory[SGDConfig]):
    """Makes stochastic gradient descent, with or without momentum."""

    name = "sgd"
    config_type = SGDConfig

    def create_optimizer(self, model: nn.Module, config: SGDConfig) -> torch.optim.Optimizer:
        groups = parameter_groups(model, config.weight_decay)
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)
