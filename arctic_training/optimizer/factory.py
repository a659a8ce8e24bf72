"""Makes an optimizer. The base of every optimizer factory."""

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
from arctic_training.errors.types import RecipeError

C = TypeVar("C", bound=OptimizerConfig)


class OptimizerFactory(Factory[C, torch.optim.Optimizer], kind="optimizer_factory"):
    """A subclass writes `create_optimizer`."""

    config_type: ClassVar[type[ComponentConfig]] = OptimizerConfig

    def __call__(self, *args: Any) -> torch.optim.Optimizer:
        """Raises `RecipeError` at a ZeRO stage at which it would silently be another algorithm."""
        (model,) = args
        run = self.trainer.config
        dtype, steps = run.model.dtype, run.gradient_accumulation_steps
        lowest = highest_stage(run, dtype)
        stage = zero_stage(run.deepspeed, process_group.world_size(), dtype=dtype, steps=steps, highest=lowest)
        if stage > (highest := self.config.highest_stage(dtype)):
            told = f"optimizer.type: {self.name} works up to ZeRO stage {highest} in {dtype}, and this run has {stage}"
            raise RecipeError(f"{told}; give deepspeed.zero_optimization.stage: {highest}")
        return self.create_optimizer(model, self.config)

    @hook("create_optimizer")
    @abstractmethod
    def create_optimizer(self, model: nn.Module, config: C) -> torch.optim.Optimizer:
        """An optimizer of the parameters of ``model`` that are trained."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters in two groups: matrices, which decay, and biases, norms and other vectors, which do not.

    Nor does a parameter that its module marks with ``_no_weight_decay``. A group that would be empty is left out. A
    parameter shared by several modules is in one group once.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                # under ZeRO-3 a parameter is flat and empty here; its true shape is kept beside it
                shape = getattr(parameter, "ds_shape", parameter.shape)
                exempt = "norm" in type(module).__name__.lower() or "bias" in name
                exempt = exempt or len(shape) < 2 or getattr(parameter, "_no_weight_decay", False)
                groups[not exempt].append(parameter)
    decays = [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
    return [group for group in decays if group["params"]]
