"""The DeepSpeed config of one engine: a pure function of the recipe and of the number of processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arctic_training.config.sections.deepspeed import deepspeed_problems, without_auto
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.types import RecipeError


@dataclass(frozen=True)
class ModelSize:
    """What the sizes of DeepSpeed's buffers are derived from; None: not known yet."""

    hidden_size: int | None = None
    parameters: int | None = None


def zero_stage(block: Mapping[str, Any], world: int, *, dtype: str = "fp32", steps: int = 1, highest: int = 3) -> int:
    """The ZeRO stage that the ``deepspeed:`` block names, else 1 on several processes and 0 on one.

    In bf16 it is 1 on one process too: stage 0 adds the gradients of ``steps`` micro-batches in bf16, and waits for the
    device once for every weight tensor. An optimizer whose ``highest`` stage is 0 has stage 0 where nothing is added.
    ArcticTraining's default is 2; stage 1 gives the same numbers with less traffic.
    """
    zero = without_auto(block).get("zero_optimization", {})
    offloads = any(zero.get(key, {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param"))
    in_bf16 = dtype == "bf16" and (steps > 1 or highest > 0)
    default = 3 if "offload_param" in zero and offloads else 1 if world > 1 or offloads or in_bf16 else 0
    return int(zero.get("stage", default))


def highest_stage(config: TrainerConfig, dtype: str) -> int:
    """Returns the highest ZeRO stage at which every optimizer of the recipe works."""
    sections = [one for one in vars(config).values() if isinstance(one, OptimizerConfig)]
    return min((section.highest_stage(dtype) for section in sections), default=3)


def deepspeed_config(
    config: TrainerConfig,
    *,
    world: int = 1,
    dtype: str | None = None,
    facts: ModelSize | None = None,
    block: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``deepspeed.initialize`` is given for a trained engine.

    ``world`` is the number of processes, ``dtype`` that of the engine's model (the recipe's ``model.dtype`` when left
    out), ``block`` what stands for the recipe's ``deepspeed:`` (a role's own). Raises `RecipeError` for what the recipe
    and the block contradict each other about.

    DeepSpeed is told of processes that share sequences as of any others: each adds its part of the gradient to the mean
    over all, and all share the optimizer's state.
    """
    facts = facts or ModelSize()
    dtype = dtype or config.model.dtype
    said = config.deepspeed if block is None else block
    micro, steps, shared = config.micro_batch_size, config.gradient_accumulation_steps, config.sequence_parallel_size
    problems = deepspeed_problems(
        said,
        micro_batch_size=micro,
        gradient_accumulation_steps=steps,
        sequence_parallel_size=shared,
        dtype=dtype,
        data_world=max(1, world // shared),
    )
    if problems:
        raise RecipeError([f"deepspeed.{'.'.join(one.path)}: {one.text}" for one in problems])
    stage = zero_stage(said, world, dtype=dtype, steps=steps, highest=highest_stage(config, dtype))
    filled: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, **_buffers(stage, facts)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "timers": _timers(said),
    }
    if dtype != "fp32":
        filled[dtype] = {"enabled": True}
    if dtype == "bf16" and stage > 0:
        # otherwise gradients are summed over micro-batches and processes in bf16
        filled["data_types"] = {"grad_accum_dtype": "fp32"}
    merged = _merge(filled, without_auto(said)) | {"train_batch_size": micro * steps * world}
    return {key: value for key, value in merged.items() if key != "sequence_parallel_size"}


def frozen_config(block: Mapping[str, Any], *, dtype: str, facts: ModelSize | None = None) -> dict[str, Any]:
    """For a frozen model that ZeRO stage 3 shards: no optimizer, and batch sizes that nothing reads."""
    said = without_auto(block)
    zero = {key: value for key, value in said.get("zero_optimization", {}).items() if key != "offload_optimizer"}
    filled: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {**_buffers(3, facts or ModelSize()), **zero, "stage": 3},
        "steps_per_print": None,
        "timers": _timers({}),
    }
    return filled | ({} if dtype == "fp32" else {dtype: {"enabled": True}})


def _timers(said: Mapping[str, Any]) -> dict[str, Any]:
    """Returns timers that wait for the device twice in each micro-batch only where their report is printed."""
    return {"throughput": {"enabled": bool(without_auto(said).get("steps_per_print"))}}


def _buffers(stage: int, facts: ModelSize) -> dict[str, int]:
    """Sizes in elements; DeepSpeed's own are made for models of billions, and it allocates them."""
    sizes: dict[str, int] = {}
    hidden, parameters = facts.hidden_size, facts.parameters
    square = hidden * hidden if hidden else 10**6
    if stage > 0 and (hidden or parameters):
        bucket = max(square, min(parameters or 0, 5 * 10**7))
        bucket += bucket % 2  # what is gathered begins at every second element
        sizes |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3 and hidden:
        sizes |= {"stage3_prefetch_bucket_size": int(0.9 * square), "stage3_param_persistence_threshold": 10 * hidden}
    return sizes


def _merge(filled: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """``said`` over ``filled``, mapping by mapping."""
    merged = dict(filled)
    for key, value in said.items():
        there = merged.get(key)
        merged[key] = _merge(there, value) if isinstance(there, dict) and isinstance(value, Mapping) else value
    return merged
