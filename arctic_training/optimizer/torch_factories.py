"""Optimizers of torch: the Adam family, RMSprop and SGD."""

from typing import Any

import torch
from pydantic import Field
from torch import nn

from arctic_training.config.sections.optimizer import Decay, OptimizerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.optimizer.factory import OptimizerFactory, parameter_groups


class AdamConfig(OptimizerConfig):
    """The optimizer section for Adam."""

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: HumanFloat = Field(default=1e-8, gt=0)
    """Added to the root of the mean square in the denominator."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that the optimizers of this family have in common."""
        return {"lr": self.learning_rate, "betas": self.betas, "eps": self.eps}

    @property
    def moments(self) -> int:
        return 2


class AdamWFactory(OptimizerFactory[AdamConfig]):
    """Makes torch's fused AdamW, for which nothing is compiled at the first start."""

    name = "adamw"

    def create_optimizer(self, model: nn.Module, config: AdamConfig) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(model, config.weight_decay), fused=True, **config.arguments)


class CoupledAdamConfig(AdamConfig):
    """The optimizer section for Adam as it was before AdamW."""

    weight_decay: HumanFloat = Field(default=0.0, ge=0)
    """Share of the weights that is added to the gradient; not applied to biases and norms."""


class AdamFactory(OptimizerFactory[CoupledAdamConfig]):
    """Makes Adam, whose weight decay is a part of the gradient (Kingma and Ba 2014, arXiv 1412.6980)."""

    name = "adam"

    def create_optimizer(self, model: nn.Module, config: CoupledAdamConfig) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameter_groups(model, config.weight_decay), fused=True, **config.arguments)


class RAdamFactory(OptimizerFactory[AdamConfig]):
    """Makes RAdam, Adam with a warm-up of its own, and decoupled weight decay (Liu et al. 2019, arXiv 1908.03265)."""

    name = "radam"

    def create_optimizer(self, model: nn.Module, config: AdamConfig) -> torch.optim.Optimizer:
        return torch.optim.RAdam(
            parameter_groups(model, config.weight_decay), decoupled_weight_decay=True, **config.arguments
        )


class NAdamConfig(AdamConfig):
    """The optimizer section for NAdam."""

    momentum_decay: HumanFloat = Field(default=4e-3, ge=0)
    """Decay of the schedule by which the momentum approaches the first of ``betas``."""


class NAdamFactory(OptimizerFactory[NAdamConfig]):
    """Makes NAdam, Adam with Nesterov momentum, and decoupled weight decay (Dozat 2016)."""

    name = "nadam"

    def create_optimizer(self, model: nn.Module, config: NAdamConfig) -> torch.optim.Optimizer:
        return torch.optim.NAdam(
            parameter_groups(model, config.weight_decay),
            momentum_decay=config.momentum_decay,
            decoupled_weight_decay=True,
            **config.arguments,
        )


class RMSpropConfig(OptimizerConfig):
    """The optimizer section for RMSprop."""

    weight_decay: HumanFloat = Field(default=0.0, ge=0)
    """Share of the weights that is added to the gradient; not applied to biases and norms."""
    alpha: HumanFloat = Field(default=0.99, ge=0, lt=1)
    """Decay of the running mean of the squared gradient."""
    eps: HumanFloat = Field(default=1e-8, gt=0)
    """Added to the root of the mean square in the denominator."""
    momentum: HumanFloat = Field(default=0.0, ge=0, lt=1)
    """Share of the last step in the next."""
    centered: bool = False
    """Divide by the standard deviation of the gradient in place of the root of its mean square."""

    @property
    def moments(self) -> int:
        return 1 + int(self.momentum > 0) + int(self.centered)


class RMSpropFactory(OptimizerFactory[RMSpropConfig]):
    """Makes RMSprop (Tieleman and Hinton 2012), with or without momentum."""

    name = "rmsprop"

    def create_optimizer(self, model: nn.Module, config: RMSpropConfig) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(
            parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            alpha=config.alpha,
            eps=config.eps,
            momentum=config.momentum,
            centered=config.centered,
        )


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

    def create_optimizer(self, model: nn.Module, config: SGDConfig) -> torch.optim.Optimizer:
        groups = parameter_groups(model, config.weight_decay)
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)
