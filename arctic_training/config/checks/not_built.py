"""What recipes of ArcticTraining 0.8 may carry, and whose features are not here yet."""

from typing import Any

from pydantic import ValidationInfo

KEYS: dict[str, tuple[str, Any]] = {
    "expert_parallel_size": ("expert parallelism", 1),
    "activation_checkpoint_cpu_offload": ("offloading activation checkpoints to the CPU", False),
    "tiled_mlp_compute": ("the tiled MLP", False),
    "arctic_moe": ("the grouped-GEMM MoE layer", False),
    "mem_profiler": ("the memory profiler", None),
    "mem_profiler_dir": ("the memory profiler", None),
    "mem_profiler_max_entries": ("the memory profiler", 100_000),
    "save_name": ("another name for the model in what is exported", None),
    "ignore_label_index": ("another label than -100 for tokens that are no target", -100),
}
"""The feature of each key, and the value that asks for nothing: they are accepted with that one only."""

TYPES = {
    "snowflake": "the source that reads from Snowflake",
    "fused_adam_moe": "the optimizer for grouped-GEMM MoE layers",
    "cpu_adam_moe": "the optimizer for grouped-GEMM MoE layers",
}
"""Names of classes, and what they would choose."""


def require_built(cls: Any, value: Any, info: ValidationInfo) -> Any:
    """Validates a field that is one of `KEYS`. Raises ValueError when it asks for more than there is."""
    feature, nothing = KEYS[info.field_name or ""]
    if value != nothing:
        raise ValueError(f"{feature} is not built yet; leave this key out")
    return value
