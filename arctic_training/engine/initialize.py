"""Builds engines: that of a model that is trained, and that of a frozen one."""

import contextlib
import io
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.distributed import process_group
from arctic_training.engine import tensor_parallel
from arctic_training.engine.config import ModelSize, deepspeed_config, frozen_config, zero_stage
from arctic_training.engine.dtypes import DTYPES
from arctic_training.engine.engine import FrozenEngine, TrainedEngine
from arctic_training.engine.internals.mesh import end_input_check
from arctic_training.engine.internals.optimizer import master_padding
from arctic_training.engine.internals.parameters import full_shape, is_partitioned_param, padding
from arctic_training.engine.internals.steps import (
    clip_gradient_values,
    skip_initial_step,
)
from arctic_training.engine.leaf_modules import reduce_whole_gradients
from arctic_training.errors.types import RecipeError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


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
