"""Engines, which turn a loss into updated weights: DeepSpeed's, and the engine of a frozen model."""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch.optim.lr_scheduler import LRScheduler

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import process_group
from arctic_training.engine import tensor_parallel
from arctic_training.engine.config import ModelSize, deepspeed_config, frozen_config, zero_stage
from arctic_training.engine.dtypes import DTYPES
from arctic_training.engine.internals.mesh import end_input_check, end_tensor_parallel
from arctic_training.engine.internals.optimizer import master_padding
from arctic_training.engine.internals.parameters import full_shape, is_partitioned_param, padding
from arctic_training.engine.internals.steps import (
    add_overflow_check,
    can_lower_scale,
    clip_gradient_values,
    loss_scaler,
    replace_lrs,
    skip_initial_step,
)
from arctic_training.engine.leaf_modules import reduce_whole_gradients
from arctic_training.errors.types import RecipeError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


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
    """DeepSpeed's engine of one trained model. Any other attribute is that of ``deepspeed``.

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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["deepspeed"], name)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self.deepspeed(*args, **kwargs)

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


def initialize(
    config: TrainerConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    *,
    dtype: str | None = None,
    block: Mapping[str, Any] | None = None,
) -> TrainedEngine:
    """Returns the engine that trains ``model``; ``optimizer`` and ``scheduler`` have torch's interfaces.

    ``dtype`` is that of this model when it is not the recipe's ``model.dtype``, ``block`` the role's own in place of
    ``deepspeed:``. Raises `RecipeError` when the recipe and the block contradict each other.
    """
    world = process_group.world_size()
    ds_config = deepspeed_config(config, world=world, dtype=dtype, size=model_size(model), block=block)
    if (divided := config.mesh.model) > 1:
        tensor_parallel.divide(model, divided)
        ds_config["tensor_parallel"] = {"autotp_size": divided}
    engine = TrainedEngine(_initialize(ds_config, model, optimizer, scheduler))
    if divided > 1:
        end_input_check(engine.deepspeed)
    if config.gradient_clip_value is not None:
        clip_gradient_values(engine.deepspeed.optimizer, config.gradient_clip_value)
    return engine


def freeze(
    config: TrainerConfig, model: torch.nn.Module, *, dtype: str | None = None, block: Mapping[str, Any] | None = None
) -> FrozenEngine:
    """Returns the engine of a frozen role: sharded over the ranks when its ZeRO stage is 3, divided as the mesh says,
    else in full on each.

    Raises `RecipeError` for fp16 where it is not supported.
    """
    block, precision = config.deepspeed if block is None else block, dtype or config.model.dtype
    model.requires_grad_(False)
    if zero_stage(block, process_group.world_size()) == 3:
        ds_config = frozen_config(block, dtype=precision, size=model_size(model))
        sharded = _initialize(ds_config, model, None, None)
        return FrozenEngine(sharded.module, sharded)
    if config.mesh.model > 1:
        tensor_parallel.divide(model, config.mesh.model)
    for parameter in model.parameters():  # and no buffer, as DeepSpeed does: rotary frequencies are fp32 in both
        parameter.data = parameter.data.to(DTYPES[precision])
    return FrozenEngine(model.to(process_group.device()))


def model_size(model: torch.nn.Module) -> ModelSize:
    """Returns the sizes that those of DeepSpeed's buffers are derived from."""
    config = getattr(model, "config", None)
    text = getattr(config, "text_config", None) or config
    hidden = getattr(text, "hidden_size", None)
    count = sum(full_shape(parameter).numel() for parameter in model.parameters())
    return ModelSize(hidden if isinstance(hidden, int) else None, count)


def _initialize(
    ds_config: dict[str, Any],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None,
    scheduler: LRScheduler | None,
) -> "DeepSpeedEngine":
    process_group.init_deepspeed()
    import deepspeed

    if ds_config.get("fp16", {}).get("enabled") and not deepspeed.get_accelerator().is_fp16_supported():
        raise RecipeError(
            f"model.dtype: fp16 cannot be trained on this {process_group.device().type}; use bf16 or fp32"
        )
    options = ("steps_per_print", "wall_clock_breakdown", "flops_profiler", "dump_state")
    reports = any(ds_config.get(key) for key in options)
    # DeepSpeed logs what these report at level INFO
    process_group.set_log_level(logging.INFO if reports else logging.ERROR)
    skip_initial_step()
    # some of DeepSpeed's optimizers print while they are built
    with contextlib.redirect_stdout(sys.stdout if reports else io.StringIO()):
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, lr_scheduler=scheduler, config=ds_config, dist_init_required=False
        )
    _clear_padding(engine)
    reduce_whole_gradients(engine.optimizer)
    return engine


def _clear_padding(deepspeed: "DeepSpeedEngine") -> None:
    """Zeroes the padding of shards, in which DeepSpeed leaves what the memory held before.

    It would reach fp32 copies, checkpoints and checks for NaN.
    """
    for parameter in deepspeed.module.parameters():
        if is_partitioned_param(parameter):
            padding(parameter).zero_()
    for tensor in master_padding(deepspeed.optimizer):
        tensor.zero_()
