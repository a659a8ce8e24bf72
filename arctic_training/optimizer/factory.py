"""The base of optimizer factories."""

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from arctic_training.callback.hooks import hook
from arctic_training.component import Factory
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.distributed import process_group
from arctic_training.engine.config import highest_stage, zero_stage
from arctic_training.engine.internals.parameters import full_shape
from arctic_training.errors.types import RecipeError

C = TypeVar("C", bound=OptimizerConfig)


class OptimizerFactory(Factory[C, torch.optim.Optimizer], kind="optimizer_factory"):
    """Makes the optimizer of a role. A subclass defines `create_optimizer`."""

    config_type: ClassVar[type[ComponentConfig]] = OptimizerConfig

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """Returns the optimizer of a model. Raises `RecipeError` where `check` does."""
        self.check()
        return self.create_optimizer(model, self.config)

    @property
    def stage(self) -> int:
        """The ZeRO stage of the run."""
        recipe = self.trainer.config
        dtype, steps = recipe.model.dtype, recipe.gradient_accumulation_steps
        limit = highest_stage(recipe, dtype)
        return zero_stage(recipe.deepspeed, process_group.world_size(), dtype=dtype, steps=steps, highest=limit)

    def check(self) -> None:
        """Raises `RecipeError` at a ZeRO stage that would change the algorithm; called before data are prepared."""
        dtype = self.trainer.config.model.dtype
        if self.stage > (highest := self.config.highest_stage(dtype)):
            raise RecipeError(
                f"optimizer.type: {self.name} works up to ZeRO stage {highest} in {dtype}, and this run has "
                f"{self.stage}; give deepspeed.zero_optimization.stage: {highest}"
            )

    @hook("create_optimizer")
    @abstractmethod
    def create_optimizer(self, model: nn.Module, config: C) -> torch.optim.Optimizer:
        """Returns an optimizer of the trained parameters of ``model``; see `parameter_groups`."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the trained parameters in two groups: matrices with weight decay, and biases, norms and other vectors.

    A parameter with the attribute ``_no_weight_decay`` is in the second group too. Empty groups are left out. A
    parameter shared by several modules appears once.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                exempt = "norm" in type(module).__name__.lower() or "bias" in name
                exempt = exempt or len(full_shape(parameter)) < 2 or getattr(parameter, "_no_weight_decay", False)
                groups[not exempt].append(parameter)
    decays = [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
    return [group for group in decays if group["params"]]
