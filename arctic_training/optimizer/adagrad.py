"""Adagrad, by torch's algorithm, with states that are made at the first step."""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import nn
from torch.optim.adagrad import adagrad
from torch.optim.optimizer import ParamsT

from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.optimizer.factory import OptimizerFactory, parameter_groups


class Adagrad(torch.optim.Optimizer):
    """Adagrad (Duchi et al. 2011). ``lr_decay`` divides the learning rate by 1 + lr_decay t after t steps.

    torch's own class makes its states when it is built; DeepSpeed, which steps other tensors than those it was built
    of, builds it anew, in one group without weight decay that no schedule knows.
    """

    def __init__(self, params: ParamsT, *, lr: float, lr_decay: float, eps: float) -> None:
        super().__init__(params, {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step with the gradients that there are."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in params:
                if not self.state[parameter]:
                    self.state[parameter] = {"step": torch.tensor(0.0), "sum": torch.zeros_like(parameter)}
            states = [self.state[parameter] for parameter in params]
            adagrad(
                params,
                [parameter.grad for parameter in params],
                [state["sum"] for state in states],
                [state["step"] for state in states],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                lr_decay=group["lr_decay"],
                eps=group["eps"],
                maximize=False,
            )
        return loss


class AdagradConfig(OptimizerConfig):
    """The optimizer section for Adagrad."""

    learning_rate: HumanFloat = Field(default=1e-2, ge=0)
    """Peak learning rate. Also ``lr``."""
    weight_decay: HumanFloat = Field(default=0.0, ge=0)
    """Share of the weights that is added to the gradient; not applied to biases and norms."""
    lr_decay: HumanFloat = Field(default=0.0, ge=0)
    """After t steps the learning rate is divided by 1 + lr_decay t, beside the schedule."""
    eps: HumanFloat = Field(default=1e-10, gt=0)
    """Added to the root of the sum of squares in the denominator."""

    @property
    def moments(self) -> int:
        return 1


class AdagradFactory(OptimizerFactory[AdagradConfig]):
    """Makes Adagrad (Duchi et al. 2011), which divides by the root of the sum of all squared gradients."""

    name = "adagrad"

    def create_optimizer(self, model: nn.Module, config: AdagradConfig) -> torch.optim.Optimizer:
        groups = parameter_groups(model, config.weight_decay)
        return Adagrad(groups, lr=config.learning_rate, lr_decay=config.lr_decay, eps=config.eps)
