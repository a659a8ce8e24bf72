"""Keys and names of ArcticTraining 0.8 whose features are not built yet: accepted without effect, or refused."""

from collections.abc import Mapping

Keys = Mapping[str, tuple[str, object]]
"""The feature of each key, and the only value that is accepted: the one that asks for nothing."""

TRAINER: Keys = {
    "expert_parallel_size": ("expert parallelism", 1),
    "arctic_moe": ("the grouped-GEMM MoE layer", False),
}
MODEL: Keys = {"save_name": ("another name for the model in what is exported", None)}
DPO: Keys = {"ignore_label_index": ("another label than -100 for tokens that are no target", -100)}
KEYS: Keys = {**TRAINER, **MODEL, **DPO}

TYPES = {
    "snowflake": "the source that reads from Snowflake",
    "fused_adam_moe": "the optimizer for grouped-GEMM MoE layers",
    "cpu_adam_moe": "the optimizer for grouped-GEMM MoE layers",
}
"""Names of classes, and what they would choose."""
