"""Engines, which turn a loss into updated weights: DeepSpeed's, and the engine of a frozen model."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

from arctic_training.engine import tensor_parallel
from arctic_training.engine.internals.mesh import end_tensor_parallel
from arctic_training.engine.internals.steps import (
    add_overflow_check,
    can_lower_scale,
    loss_scaler,
    replace_lrs,
)

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.base_optimizer import DeepSpeedOptimizer
    from torch.optim.lr_scheduler import LRScheduler


class Engine(Protocol):
    """The engine of one model, as the trainers know it."""

    module: torch.nn.Module
    last_lr: float
    """The learning rate of the last step."""

    @property
    def global_steps(self) -> int:
        """Optimizer steps, including those that were skipped for a gradient that is not finite."""

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps that were skipped for a gradient that is not finite."""

    @property
    def is_searching_loss_scale(self) -> bool:
        """Returns whether a gradient that is not finite only lowers the scale of the fp16 loss, and is no fault."""

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last step's gradient before clipping; None before the first one."""

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Returns the output of the module."""

    def set_gradient_accumulation_boundary(self, is_last_micro_batch: bool) -> None:
        """Says, before each backward, whether its micro-batch is the last one of the step."""

    def backward(self, loss: torch.Tensor) -> object:
        """Accumulates the gradient of ``loss`` ([], of any float dtype), divided by ``gradient_accumulation_steps``."""

    def step(self) -> None:
        """Is called after every backward; updates the weights after that of the last micro-batch."""

    def train(self, mode: bool = True) -> Self:
        """Sets the module to training mode and returns the engine."""

    def eval(self) -> Self:
        """Sets the module to evaluation mode and returns the engine."""

    def destroy(self) -> None:
        """Frees what the engine holds; it cannot be used afterwards."""


class TrainedEngine(Engine):
    """DeepSpeed's engine of one trained model.

    A gradient that is not finite skips the step at every stage and precision: it counts in ``global_steps`` and
    ``skipped_steps``, while weights, optimizer and schedule stay as they were.
    """

    def __init__(self, deepspeed: "DeepSpeedEngine") -> None:
        self.deepspeed = deepspeed
        self.module: torch.nn.Module = deepspeed.module
        self.last_lr = float(deepspeed.optimizer.param_groups[0]["lr"])
        self.holds_trained_weights = True
        """Whether the model has the weights that are trained; False where `replaced_weights` has put others there."""
        self._scaler = loss_scaler(deepspeed.optimizer)
        self._lr_rules: list[Callable[[float], float]] = []
        if isinstance(deepspeed.optimizer, torch.optim.Optimizer):  # ZeRO stage 0 in fp32
            add_overflow_check(deepspeed)

    def __getattr__(self, name: str) -> object:
        """Returns an attribute of DeepSpeed's engine, which ``trainer.model`` is in ArcticTraining 0.8, and warns."""
        value: object = getattr(self.__dict__["deepspeed"], name)
        warnings.warn(f"engine.{name} will be removed; write engine.deepspeed.{name}", FutureWarning, stacklevel=2)
        return value

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self.deepspeed(*args, **kwargs)

    @property
    def optimizer(self) -> "DeepSpeedOptimizer":
        """DeepSpeed's optimizer, around that of torch; at ZeRO stage 0 in fp32 that of torch."""
        return self.deepspeed.optimizer

    @property
    def lr_scheduler(self) -> "LRScheduler":
        """The schedule of the learning rate."""
        schedule: LRScheduler = self.deepspeed.lr_scheduler
        return schedule

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return torch.device(self.deepspeed.device)

    def is_gradient_accumulation_boundary(self) -> bool:
        """Returns whether the next `step` updates the weights."""
        return bool(self.deepspeed.is_gradient_accumulation_boundary())

    @property
    def global_steps(self) -> int:
        return int(self.deepspeed.global_steps)

    @property
    def skipped_steps(self) -> int:
        return int(self.deepspeed.skipped_steps)

    @property
    def is_searching_loss_scale(self) -> bool:
        return can_lower_scale(self._scaler)

    @property
    def grad_norm(self) -> float | None:
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)

    def set_gradient_accumulation_boundary(self, is_last_micro_batch: bool) -> None:
        self.deepspeed.set_gradient_accumulation_boundary(is_last_micro_batch)

    def backward(self, loss: torch.Tensor) -> object:
        return self.deepspeed.backward(loss)

    def step(self) -> None:
        is_last_micro_batch = self.deepspeed.is_gradient_accumulation_boundary()
        lr = self.last_lr
        if is_last_micro_batch:
            lr = self._apply_lr_rules(self.deepspeed.optimizer.param_groups[0]["lr"])
        self.deepspeed.step()
        self.last_lr = float(lr)

    def add_lr_rule(self, rule: Callable[[float], float]) -> None:
        """Steps from now on with ``rule(lr)`` in the place of each learning rate of the schedule, which goes on as if
        there were no rule. Several rules apply in turn."""
        if not self._lr_rules:
            replace_lrs(self.deepspeed.optimizer, self._apply_lr_rules)
        self._lr_rules.append(rule)

    def _apply_lr_rules(self, lr: float) -> float:
        for rule in self._lr_rules:
            lr = rule(lr)
        return lr

    def train(self, mode: bool = True) -> Self:
        self.deepspeed.train(mode)
        return self

    def eval(self) -> Self:
        return self.train(False)

    def destroy(self) -> None:
        is_divided = tensor_parallel.is_divided(self.module)
        self.deepspeed.destroy()
        if is_divided:
            end_tensor_parallel()


class FrozenEngine(Engine):
    """The engine of a frozen model: no optimizer, no gradients, always in evaluation mode."""

    global_steps = 0
    skipped_steps = 0
    last_lr = 0.0
    is_searching_loss_scale = False
    grad_norm = None

    def __init__(self, module: torch.nn.Module, deepspeed: "DeepSpeedEngine | None" = None) -> None:
        self.module, self.deepspeed = module.requires_grad_(False).eval(), deepspeed

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return (self.deepspeed or self.module)(*args, **kwargs)

    def set_gradient_accumulation_boundary(self, is_last_micro_batch: bool) -> None: ...

    def backward(self, loss: torch.Tensor) -> object:
        """Raises TypeError: a frozen model has no gradients."""
        raise TypeError("a frozen model has no gradients")

    def step(self) -> None:
        """Raises TypeError: a frozen model takes no steps."""
        raise TypeError("a frozen model takes no steps")

    def train(self, mode: bool = True) -> Self:
        return self

    def eval(self) -> Self:
        return self

    def destroy(self) -> None:
        if self.deepspeed is not None:
            self.deepspeed.destroy()
        elif tensor_parallel.is_divided(self.module):
            end_tensor_parallel()
