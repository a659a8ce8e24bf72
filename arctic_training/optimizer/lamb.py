"""LAMB: Adam with steps that are as long as a share of the weights."""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import nn
from torch.optim.optimizer import ParamsT

from arctic_training.config.sections.types import HumanFloat
from arctic_training.optimizer.factory import OptimizerFactory, parameter_groups
from arctic_training.optimizer.torch_factories import AdamConfig


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2, with Adam's bias correction).

    The step of a tensor is AdamW's direction, weight decay included, scaled to the norm of the tensor, times the
    learning rate; a tensor or a direction of norm 0 is not scaled. The states are of the dtype of the weights.
    """

    def __init__(self, params: ParamsT, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step with the gradients that there are."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self._direction(parameter, parameter.grad, group["betas"], group["eps"])
                    direction.add_(parameter, alpha=group["weight_decay"])
                    size, length = parameter.norm(), direction.norm()
                    scale = torch.where((size > 0) & (length > 0), size / length, 1.0)
                    parameter.sub_(direction * (scale * group["lr"]))
        return loss

    def _direction(
        self, parameter: torch.Tensor, gradient: torch.Tensor, betas: tuple[float, float], eps: float
    ) -> torch.Tensor:
        """Returns Adam's direction after the states have taken in ``gradient``."""
        state, (beta1, beta2) = self.state[parameter], betas
        if not state:
            state["step"] = torch.tensor(0.0)
            state.update(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        step, mean, square = int(state["step"]), state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        direction: torch.Tensor = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + eps)
        return direction


class LambConfig(AdamConfig):
    """The optimizer section for LAMB."""

    learning_rate: HumanFloat = Field(default=2e-3, ge=0)
    """Peak learning rate: the length of a step as a share of that of the weights. Also ``lr``."""
    eps: HumanFloat = Field(default=1e-6, gt=0)
    """Added to the root of the mean square in the denominator."""

    def highest_stage(self, dtype: str) -> int:
        # the norms are those of whole tensors, which higher stages partition
        return 0


class LambFactory(OptimizerFactory[LambConfig]):
    """Makes LAMB for large batches (You et al. 2019, arXiv 1904.00962); at ZeRO stage 0 only."""

    name = "lamb"

    def create_optimizer(self, model: nn.Module, config: LambConfig) -> torch.optim.Optimizer:
        return Lamb(parameter_groups(model, config.weight_decay), **config.arguments)
