"""Steps of DeepSpeed's engine: its counters, the scale of an fp16 loss, and hooks of torch's optimizer."""

import importlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from arctic_training.engine.internals.optimizer import group_params, torch_optimizer

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.base_optimizer import DeepSpeedOptimizer

_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def counters(deepspeed: "DeepSpeedEngine") -> dict[str, int]:
    """Returns the engine's counts of steps, micro-batches and samples, by attribute."""
    return {name: getattr(deepspeed, name) for name in _COUNTERS}


def scaler_holders(optimizer: "DeepSpeedOptimizer") -> list[Any]:
    """Returns the objects that hold the loss scale of fp16 and what decides about the next one."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return []
    scalers = [vars(optimizer).get(name) for name in ("loss_scaler", "loss_scale_config")]
    return [optimizer, *(one for one in scalers if hasattr(one, "__dict__"))]


def scaler_state(optimizer: "DeepSpeedOptimizer") -> list[dict[str, int | float]]:
    """Returns the numbers of each of `scaler_holders`, by attribute."""
    states = [{name: vars(one).get(name) for name in _SCALER_STATE} for one in scaler_holders(optimizer)]
    return [{name: value for name, value in one.items() if isinstance(value, int | float)} for one in states]


def loss_scaler(optimizer: "DeepSpeedOptimizer") -> object:
    """Returns the scaler of the fp16 loss, or None; at its least scale it skips the step as other precisions do."""
    scaler: object = getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False
    return scaler


def can_lower_scale(scaler: Any) -> bool:
    """Returns whether the scaler reacts to an overflow by a lower scale."""
    dynamic = getattr(scaler, "dynamic", getattr(scaler, "dynamic_loss_scale", False))
    least = getattr(scaler, "min_scale", getattr(scaler, "min_loss_scale", 1.0))
    return bool(dynamic) and scaler.cur_scale > least


def skip_initial_step() -> None:
    """Keeps stage 0 below fp32 from a first step of zero gradients, which decays the weights and counts as one."""
    for module, name in (("unfused_optimizer", "FP16_UnfusedOptimizer"), ("fused_optimizer", "FP16_Optimizer")):
        wrapper = getattr(importlib.import_module(f"deepspeed.runtime.fp16.{module}"), name)
        wrapper.initialize_optimizer_states = lambda optimizer: None


def add_overflow_check(deepspeed: "DeepSpeedEngine") -> None:
    """Gives stage 0 in fp32 what the other optimizers have: a gradient norm, and no step by a gradient not finite."""
    optimizer, limit = deepspeed.optimizer, float(deepspeed.gradient_clipping())
    parameters = group_params(optimizer)
    optimizer.overflow = False  # DeepSpeed reads it after the step, and keeps the schedule back when true

    def check(*_: object) -> None:
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


def clip_gradient_values(optimizer: "DeepSpeedOptimizer", limit: float) -> None:
    """Has torch's optimizer take each step with the elements of the gradient clipped to ``[-limit, limit]``: by then it
    is the mean over micro-batches and ranks, without the scale of the loss, and finite."""

    def clip(inner: torch.optim.Optimizer, *_: object) -> None:
        held = [tensor for tensor in group_params(inner) if tensor.grad is not None]
        if held:  # none where the overflow check has removed them
            torch.nn.utils.clip_grad_value_(held, limit)

    torch_optimizer(optimizer).register_step_pre_hook(clip)


def replace_lrs(optimizer: "DeepSpeedOptimizer", rule: Callable[[float], float]) -> None:
    """Has torch's optimizer take each step with ``rule(lr)`` in the place of the learning rates of its groups."""
    scheduled: list[float] = []

    def replace(inner: torch.optim.Optimizer, *_: object) -> None:
        scheduled[:] = [group["lr"] for group in inner.param_groups]
        for group, lr in zip(inner.param_groups, scheduled, strict=True):
            group["lr"] = rule(lr)

    def put_back(inner: torch.optim.Optimizer, *_: object) -> None:
        for group, lr in zip(inner.param_groups, scheduled, strict=True):
            group["lr"] = lr

    inner = torch_optimizer(optimizer)
    inner.register_step_pre_hook(replace)
    inner.register_step_post_hook(put_back)


def end_prefetch(deepspeed: "DeepSpeedEngine") -> None:
    """Waits for parameters that ZeRO stage 3 still gathers for a forward pass that does not come, and partitions them:
    nothing else could gather them meanwhile."""
    if any(getattr(getattr(one, "ds_status", None), "name", "") == "INFLIGHT" for one in deepspeed.module.parameters()):
        deepspeed.optimizer.empty_partition_cache()
