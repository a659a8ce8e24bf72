"""Lion: steps of one length, by the sign of a momentum."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from arctic_training.config.sections.optimizer import Decay, OptimizerConfig
from arctic_training.optimizer.factory import OptimizerFactory, parameter_groups


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2), with the state in the dtype of the weights.

    The sign of 0 is 0: a weight that never had a gradient, as of a token that does not occur, takes no step, where the
    kernels of DeepSpeed move it by the learning rate.
    """

    def __init__(self, params: ParamsT, *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step with the gradients that there are."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["exp_avg"] = torch.zeros_like(parameter)
                    mean = state["exp_avg"]
                    direction = mean.lerp(parameter.grad, 1 - beta1).sign_()
                    mean.lerp_(parameter.grad, 1 - beta2)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
        return loss


class LionConfig(OptimizerConfig):
    """The optimizer section for Lion."""

    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Decay of the mean whose sign is the step, and of the mean that is kept."""

    @property
    def moments(self) -> int:
        return 1


class LionFactory(OptimizerFactory[LionConfig]):
    """Makes Lion (Chen et al. 2023, arXiv 2302.06675)."""

    name = "lion"

    def create_optimizer(self, model: nn.Module, config: LionConfig) -> torch.optim.Optimizer:
        return Lion(parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas)
