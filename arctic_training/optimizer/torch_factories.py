"""Optimizers of torch itself."""

from typing import Any

import torch
from pydantic import Field
from torch import nn

from arctic_training.config.sections.numbers import HumanFloat
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.optimizer.factory import OptimizerFactory, parameter_groups


class AdamConfig(OptimizerConfig):
    betas: tuple[HumanFloat, HumanFloat] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: HumanFloat = Field(default=1e-8, gt=0)
    """Added to the root of the mean square, which divides."""

    @property
    def moments(self) -> int:
        return 2


class AdamWFactory(OptimizerFactory[AdamConfig]):
    """AdamW in torch's fused form: nothing is compiled at the first start."""

    name = "adamw"
    config_type = AdamConfig

    def create_optimizer(self, model: nn.Module, config: AdamConfig) -> torch.optim.Optimizer:
        return fused_adamw(parameter_groups(model, config.weight_decay), config)


def fused_adamw(groups: list[dict[str, Any]], config: AdamConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


class SGDConfig(OptimizerConfig):
    momentum: HumanFloat = Field(default=0.0, ge=0, lt=1)
    """Share of the last step that is in the next."""
    nesterov: bool = False
    """Look ahead by the momentum before the gradient is added."""

    @property
    def moments(self) -> int:
        return int(self.momentum > 0)


class SGDFactory(OptimizerFactory[SGDConfig]):
    """Stochastic gradient descent, with momentum or without."""

    name = "sgd"
    config_type = SGDConfig

    def create_optimizer(self, model: nn.Module, config: SGDConfig) -> torch.optim.Optimizer:
        groups = parameter_groups(model, config.weight_decay)
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)
