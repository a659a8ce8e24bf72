"""The DeepSpeed config of one engine: a pure function of the recipe and of the world size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arctic_training.config.sections.deepspeed import deepspeed_problems, without_auto
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import RecipeError


@dataclass(frozen=True)
class ModelSize:
    """The sizes that those of DeepSpeed's buffers are derived from; None: not known yet."""

    hidden_size: int | None = None
    """Width of the hidden states."""
    parameters: int | None = None
    """Number of elements of all parameters."""


def zero_stage(block: Mapping[str, Any], world: int, *, dtype: str = "fp32", steps: int = 1, highest: int = 3) -> int:
    """Returns the ZeRO stage that the ``deepspeed:`` block names, else 1 on several ranks and 0 on one.

    In bf16 it is 1 on one rank too: stage 0 accumulates the gradients of ``steps`` micro-batches in bf16, and waits for
    the device once for every weight tensor. An optimizer whose ``highest`` stage is 0 has stage 0 where nothing is
    accumulated. ArcticTraining's default is 2; stage 1 gives the same numbers with less traffic.
    """
    zero = without_auto(block).get("zero_optimization", {})
    offloads = any(zero.get(key, {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param"))
    in_bf16 = dtype == "bf16" and (steps > 1 or highest > 0)
    default = 3 if "offload_param" in zero and offloads else 1 if world > 1 or offloads or in_bf16 else 0
    return int(zero.get("stage", default))


def require_weights_in_memory(
    config: TrainerConfig, key: str, why: str, *, parts: Sequence[str] = ("offload_param",)
) -> None:
    """Raises `RecipeError`, which begins with ``key``, where one of ``parts`` of the ``deepspeed:`` block keeps weights
    on a disk; ``why`` is what is impossible then."""
    zero = config.deepspeed.get("zero_optimization", {})
    for part in parts:
        if zero.get(part, {}).get("device") == "nvme":
            raise RecipeError(
                f"{key}: with deepspeed.zero_optimization.{part}.device: nvme the weights are not in memory, and "
                f"{why}; set cpu"
            )


def highest_stage(config: TrainerConfig, dtype: str) -> int:
    """Returns the highest ZeRO stage at which every optimizer of the recipe works."""
    sections = [one for one in vars(config).values() if isinstance(one, OptimizerConfig)]
    return min((section.highest_stage(dtype) for section in sections), default=3)


def deepspeed_config(
    config: TrainerConfig,
    *,
    world: int = 1,
    dtype: str | None = None,
    size: ModelSize | None = None,
    block: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the config that ``deepspeed.initialize`` takes for a trained engine.

    ``world`` is the world size, ``dtype`` that of the engine's model (the recipe's ``model.dtype`` without it), and
    ``block`` a role's own in place of the recipe's ``deepspeed:``. Raises `RecipeError` where the recipe and the block
    contradict each other.

    To DeepSpeed, ranks that share sequences are ranks as any others: each adds its part of the gradient to the mean
    over all, and all share the optimizer's state. `initialize` names those that divide a model.
    """
    dtype = dtype or config.model.dtype
    block = config.deepspeed if block is None else block
    micro, steps, shared = config.micro_batch_size, config.gradient_accumulation_steps, config.sequence_parallel_size
    divided = config.mesh.model
    problems = deepspeed_problems(
        block,
        micro_batch_size=micro,
        gradient_accumulation_steps=steps,
        sequence_parallel_size=shared,
        model_parallel_size=divided,
        dtype=dtype,
        data_world=max(1, world // (shared * divided)),
        max_grad_norm=config.max_grad_norm,
        gradient_clip_value=config.gradient_clip_value,
    )
    if problems:
        raise RecipeError([f"deepspeed.{'.'.join(one.path)}: {one.text}" for one in problems])
    norm = config.max_grad_norm if config.gradient_clip_value is None else 0.0
    stage = zero_stage(block, world, dtype=dtype, steps=steps, highest=highest_stage(config, dtype))
    defaults: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": 1.0 if norm is None else norm,
        "zero_optimization": {"stage": stage, **_buffers(stage, size or ModelSize())},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "timers": _timers(block),
    }
    if dtype != "fp32":
        defaults[dtype] = {"enabled": True}
    if dtype == "bf16" and stage > 0:
        # otherwise gradients are summed over micro-batches and processes in bf16
        defaults["data_types"] = {"grad_accum_dtype": "fp32"}
    merged = _merge(defaults, without_auto(block)) | {"train_batch_size": micro * steps * world}
    return {key: value for key, value in merged.items() if key != "sequence_parallel_size"}


def frozen_config(block: Mapping[str, Any], *, dtype: str, size: ModelSize | None = None) -> dict[str, Any]:
    """Returns the config for a frozen model that ZeRO stage 3 shards: no optimizer, and batch sizes nothing reads."""
    zero = {
        key: value
        for key, value in without_auto(block).get("zero_optimization", {}).items()
        if key != "offload_optimizer"
    }
    defaults: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {**_buffers(3, size or ModelSize()), **zero, "stage": 3},
        "steps_per_print": None,
        "timers": _timers({}),
    }
    return defaults | ({} if dtype == "fp32" else {dtype: {"enabled": True}})


def _timers(block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns timers that wait for the device twice in each micro-batch only where their report is printed."""
    return {"throughput": {"enabled": bool(without_auto(block).get("steps_per_print"))}}


def _buffers(stage: int, size: ModelSize) -> dict[str, int]:
    """Returns sizes in elements. DeepSpeed's defaults suit models of billions, and it allocates them."""
    sizes: dict[str, int] = {}
    hidden, parameters = size.hidden_size, size.parameters
    square = hidden * hidden if hidden else 10**6
    if stage > 0 and (hidden or parameters):
        bucket = max(square, min(parameters or 0, 5 * 10**7))
        bucket += bucket % 2  # DeepSpeed aligns what it gathers to two elements
        sizes |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3 and hidden:
        sizes |= {"stage3_prefetch_bucket_size": int(0.9 * square), "stage3_param_persistence_threshold": 10 * hidden}
    return sizes


def _merge(defaults: dict[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``defaults`` overridden by ``block``, mapping by mapping."""
    merged = dict(defaults)
    for key, value in block.items():
        default = merged.get(key)
        merged[key] = _merge(default, value) if isinstance(default, dict) and isinstance(value, Mapping) else value
    return merged
