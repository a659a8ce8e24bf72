"""What turns a loss into updated weights: DeepSpeed's engine, and what a frozen model has in its place."""

import contextlib
import importlib
import io
import logging
import math
import sys
from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import process_group
from arctic_training.engine.config import ModelSize, deepspeed_config, frozen_config, zero_stage
from arctic_training.engine.zero import clear_padding
from arctic_training.errors.types import RecipeError

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Engine(Protocol):
    """What the loop and its subclasses know of an engine."""

    module: torch.nn.Module

    @property
    def global_steps(self) -> int:
        """Windows completed, an update that was skipped for a gradient that is not finite among them."""

    @property
    def skipped_steps(self) -> int: ...
    @property
    def last_lr(self) -> float:
        """The learning rate of the last update."""

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last update's gradient before clipping; None before the first one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def set_gradient_accumulation_boundary(self, closes: bool) -> None:
        """Say, before each backward, whether its micro-batch is the last of its window."""

    def backward(self, loss: torch.Tensor) -> Any:
        """Add the gradient of ``loss`` divided by ``gradient_accumulation_steps`` to the window's."""

    def step(self) -> None:
        """After every backward; updates the weights when the window closes."""

    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...
    def destroy(self) -> None: ...


class TrainedEngine:
    """DeepSpeed's engine of one trained network. What is not named here is the attribute of ``deepspeed``.

    A gradient that is not finite skips the update at every stage and precision: the window counts in ``global_steps``
    and ``skipped_steps``, weights, optimizer and schedule stay as they were.
    """

    def __init__(self, deepspeed: Any) -> None:
        self.deepspeed = deepspeed
        self.module: torch.nn.Module = deepspeed.module
        self.last_lr = float(deepspeed.optimizer.param_groups[0]["lr"])
        # the scaler of the fp16 loss; at its least scale it would raise, where other precisions skip the update
        self._scaler: Any = getattr(deepspeed.optimizer, "loss_scaler", None)
        self._scaler = self._scaler or getattr(deepspeed.optimizer, "loss_scale_config", None)
        if hasattr(self._scaler, "raise_error_at_min_scale"):
            self._scaler.raise_error_at_min_scale = False
        if isinstance(deepspeed.optimizer, torch.optim.Optimizer):
            _guard(deepspeed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["deepspeed"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.deepspeed(*args, **kwargs)

    @property
    def global_steps(self) -> int:
        return int(self.deepspeed.global_steps)

    @property
    def skipped_steps(self) -> int:
        return int(self.deepspeed.skipped_steps)

    @property
    def is_searching_loss_scale(self) -> bool:
        """Whether a gradient that is not finite lowers the scale of the fp16 loss, and so need be nobody's fault."""
        scaler: Any = self._scaler
        dynamic = getattr(scaler, "dynamic", getattr(scaler, "dynamic_loss_scale", False))
        least = getattr(scaler, "min_scale", getattr(scaler, "min_loss_scale", 1.0))
        return bool(dynamic) and scaler.cur_scale > least

    @property
    def grad_norm(self) -> float | None:
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)

    def set_gradient_accumulation_boundary(self, closes: bool) -> None:
        self.deepspeed.set_gradient_accumulation_boundary(closes)

    def backward(self, loss: torch.Tensor) -> Any:
        return self.deepspeed.backward(loss)

    def step(self) -> None:
        closes = self.deepspeed.is_gradient_accumulation_boundary()
        lr = self.deepspeed.optimizer.param_groups[0]["lr"] if closes else self.last_lr
        self.deepspeed.step()
        self.last_lr = float(lr)

    def train(self, mode: bool = True) -> Self:
        self.deepspeed.train(mode)
        return self

    def eval(self) -> Self:
        return self.train(False)

    def destroy(self) -> None:
        self.deepspeed.destroy()


class FrozenEngine:
    """A model that is only asked: no optimizer, no gradient of its own, always in evaluation mode."""

    global_steps = 0
    skipped_steps = 0
    last_lr = 0.0
    grad_norm = None

    def __init__(self, module: torch.nn.Module, deepspeed: Any = None) -> None:
        self.module, self.deepspeed = module.requires_grad_(False).eval(), deepspeed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.deepspeed or self.module)(*args, **kwargs)

    def set_gradient_accumulation_boundary(self, closes: bool) -> None: ...

    def backward(self, loss: torch.Tensor) -> Any:
        raise TypeError("a frozen model takes no gradient")

    def step(self) -> None:
        raise TypeError("a frozen model takes no update")

    def train(self, mode: bool = True) -> Self:
        return self

    def eval(self) -> Self:
        return self

    def destroy(self) -> None:
        if self.deepspeed is not None:
            self.deepspeed.destroy()


def initialize(
    config: TrainerConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    *,
    dtype: str | None = None,
    block: Mapping[str, Any] | None = None,
) -> TrainedEngine:
    """The engine that trains ``model``; ``optimizer`` and ``scheduler`` are torch's, or shaped like them.

    ``dtype`` is that of this model when it is not the recipe's ``model.dtype``, ``block`` the role's own in place of
    ``deepspeed:``. Raises `RecipeError` when the recipe and the block contradict each other.
    """
    told = deepspeed_config(config, world=process_group.world_size(), dtype=dtype, facts=facts(model), block=block)
    return TrainedEngine(_start(told, model, optimizer, scheduler))


def freeze(
    config: TrainerConfig,
    model: torch.nn.Module,
    *,
    dtype: str | None = None,
    block: Mapping[str, Any] | None = None,
) -> FrozenEngine:
    """The engine of a frozen role: sharded over the processes when the run's ZeRO stage is 3, else whole on each."""
    said, precision = config.deepspeed if block is None else block, dtype or config.model.dtype
    model.requires_grad_(False)
    if zero_stage(said, process_group.world_size()) == 3:
        sharded = _start(frozen_config(said, dtype=precision, facts=facts(model)), model, None, None)
        return FrozenEngine(sharded.module, sharded)
    for parameter in model.parameters():  # and no buffer, as DeepSpeed does: rotary frequencies are fp32 in both
        parameter.data = parameter.data.to(_TYPES[precision])
    return FrozenEngine(model.to(process_group.device()))


def facts(model: torch.nn.Module) -> ModelSize:
    """The sizes that DeepSpeed's buffers are derived from."""
    config = getattr(model, "config", None)
    text = getattr(config, "text_config", None) or config
    hidden = getattr(text, "hidden_size", None)
    count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    return ModelSize(hidden if isinstance(hidden, int) else None, count)


def _start(told: dict[str, Any], model: torch.nn.Module, optimizer: Any, scheduler: Any) -> Any:
    process_group.init_deepspeed()
    import deepspeed

    if told.get("fp16", {}).get("enabled") and not deepspeed.get_accelerator().is_fp16_supported():
        raise RecipeError(
            f"model.dtype: fp16 cannot be trained on this {process_group.device().type}; give bf16 or fp32"
        )
    reports = any(told.get(key) for key in ("steps_per_print", "wall_clock_breakdown", "flops_profiler", "dump_state"))
    # what was asked for is said at DeepSpeed's level INFO
    deepspeed.utils.logger.setLevel(logging.INFO if reports else logging.ERROR)
    # at stage 0 below fp32 it would begin with a step of zero gradients, which decays the weights and counts as one
    for module, wraps in (("unfused_optimizer", "FP16_UnfusedOptimizer"), ("fused_optimizer", "FP16_Optimizer")):
        wrapper = getattr(importlib.import_module(f"deepspeed.runtime.fp16.{module}"), wraps)
        wrapper.initialize_optimizer_states = lambda optimizer: None
    # some of its optimizers print while they are made
    with contextlib.redirect_stdout(sys.stdout if reports else io.StringIO()):
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, lr_scheduler=scheduler, config=told, dist_init_required=False
        )
    clear_padding(engine)
    return engine


def _guard(deepspeed: Any) -> None:
    """Give ZeRO stage 0 in fp32 what DeepSpeed's other optimizers have: a norm, and no update by a NaN."""
    optimizer, limit = deepspeed.optimizer, float(deepspeed.gradient_clipping())
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.overflow = False  # DeepSpeed asks for it after the step, and keeps the schedule back when true

    def check(*_: Any) -> None:
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        size = norm.item()
        optimizer.overflow = not math.isfinite(size)
        deepspeed._global_grad_norm = math.inf if optimizer.overflow else size
        if optimizer.overflow:
            for parameter in parameters:
                parameter.grad = None
        elif limit > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    deepspeed.clip_fp32_gradients = lambda: None
    optimizer.register_step_pre_hook(check)
