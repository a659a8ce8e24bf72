"""Schedule-free AdamW: an average of the weights takes the place of a learning rate that falls."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from arctic_training.config.sections.optimizer import Decay
from arctic_training.config.sections.types import HumanFloat
from arctic_training.engine.config import require_weights_in_memory
from arctic_training.errors.types import RecipeError
from arctic_training.optimizer.factory import OptimizerFactory, parameter_groups
from arctic_training.optimizer.torch_factories import AdamConfig


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682, algorithm 1, with Adam's bias correction of the
    squares).

    The parameters are y, at which gradients are taken. ``z`` takes AdamW's steps, with the weight decay of y, and x is
    the mean of all z, weighted by the squares of the highest learning rates so far. ``averaging`` is the share of x in
    y. x is not kept: `arctic_training.engine.averaging` computes it of y and z.
    """

    def __init__(self, params: ParamsT, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        averaging, beta2 = betas
        super().__init__(params, {"lr": lr, "averaging": averaging, "beta2": beta2, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step with the gradients that there are."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:  # without a gradient too: in another layout it may be a part of a tensor with one
                    state.update(z=parameter.detach().clone(), exp_avg_sq=torch.zeros_like(parameter))
                    state.update(step=0, highest_lr=0.0, weight_sum=0.0)
                if parameter.grad is not None:
                    _step(parameter, parameter.grad, state, **{key: group[key] for key in self.defaults})
        return loss


def _step(
    y: Tensor,
    gradient: Tensor,
    state: dict[str, Any],
    *,
    lr: float,
    averaging: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Takes a step of one tensor in place."""
    state["step"] += 1
    state["highest_lr"] = max(state["highest_lr"], lr)
    weight = state["highest_lr"] ** 2
    state["weight_sum"] += weight
    share = weight / state["weight_sum"] if weight else 0.0
    z, squares = state["z"], state["exp_avg_sq"]
    squares.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    direction = gradient / (squares / (1 - beta2 ** state["step"])).sqrt_().add_(eps)
    direction.add_(y, alpha=weight_decay)
    # y = (1 - b) z + b x, in which x moves by ``share`` towards the z that has stepped
    y.lerp_(z, share).add_(direction, alpha=lr * (averaging * (1 - share) - 1))
    z.sub_(direction, alpha=lr)


class ScheduleFreeConfig(AdamConfig):
    """The optimizer section for schedule-free AdamW."""

    learning_rate: HumanFloat = Field(default=2.5e-3, ge=0)
    """Learning rate after the warm-up. Also ``lr``."""
    betas: tuple[Annotated[HumanFloat, Field(gt=0, le=1)], Decay] = (0.9, 0.999)
    """Share of the average in the weights that are trained, above 0, and decay of the mean of the squared gradient."""

    @property
    def is_schedule_free(self) -> bool:
        return True


class ScheduleFreeFactory(OptimizerFactory[ScheduleFreeConfig]):
    """Makes schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682).

    A run is evaluated and exported by an average of its weights."""

    name = "schedule_free"

    def check(self) -> None:
        """Raises `RecipeError` for a callback that averages the weights too, and for weights that are not in memory."""
        super().check()
        recipe = self.trainer.config
        for callback in recipe.callbacks:
            role = getattr(callback, "role", "model")
            section = "optimizer" if role == "model" else f"{role}_optimizer"
            if callback.type == "ema" and getattr(recipe, section, None) is self.config:
                raise RecipeError(
                    f"callbacks.ema: optimizer.type {self.name} averages the weights of {role} itself; remove "
                    "one of them"
                )
        parts = ("offload_optimizer", "offload_param")
        require_weights_in_memory(recipe, "optimizer.type", f"{self.name} cannot be evaluated", parts=parts)

    def create_optimizer(self, model: nn.Module, config: ScheduleFreeConfig) -> torch.optim.Optimizer:
        return ScheduleFreeAdamW(parameter_groups(model, config.weight_decay), **config.arguments)
