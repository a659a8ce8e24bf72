"""Keys that recipes of ArcticTraining may carry, and whose features are not here yet."""

from typing import Any

NOT_BUILT = {
    "expert_parallel_size": "expert parallelism",
    "activation_checkpoint_cpu_offload": "offloading activation checkpoints to the CPU",
    "tiled_mlp_compute": "the tiled MLP",
    "arctic_moe": "the grouped-GEMM MoE layer",
    "mem_profiler": "the memory profiler",
}
"""What they would turn on. They are accepted at their defaults only."""


def require_built(name: str, value: Any, default: Any) -> None:
    """Raises ValueError when the key ``name`` asks for more than there is."""
    if value != default:
        raise ValueError(f"{NOT_BUILT[name]} is not built yet; leave this key out")
