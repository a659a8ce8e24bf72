"""The installed DeepSpeed has every undocumented attribute that the package reads, on real engines at every stage."""

import ast
import importlib
import inspect
import re
from typing import Any

import torch

from arctic_training.distributed import process_group
from arctic_training.engine import leaf_modules
from arctic_training.engine.internals import mesh, optimizer, parameters, steps
from tests import processes
from tests.engine import small

COUNTERS = ["global_steps", "global_samples", "micro_steps", "skipped_steps"]
FRAGMENTS = [
    f"parameter._hp_mapping.{name}"
    for name in ("lp_fragment_address.start", "hp_fragment_address.start", "hp_fragment_address.numel")
]
SHARDS = [
    *(f"parameter.{name}" for name in ("ds_id", "ds_shape", "ds_numel", "ds_tensor.ds_numel", "ds_status.name")),
    *(f"optimizer.{name}" for name in ("fp16_groups", "fp32_partitioned_groups_flat", "sub_group_to_group_id")),
    "optimizer.empty_partition_cache",
    *(f"optimizer.persistent_parameters.0.{name}" for name in ("partition", "all_gather")),
]
SHARED = ["optimizer.optimizer", "optimizer.dp_process_group"]
MESH = ["ds_autotp_universal_checkpoint_meta", "first_dataloader_check", "ds_autotp_parsed", "_init_tp_mesh_device"]
"""What engines have whose weights processes divide: `tests.engine.test_tensor_parallel` has some."""
SCALER = ["optimizer.loss_scaler.cur_scale", "optimizer.loss_scaler.dynamic"]

ATTRIBUTES: dict[tuple[int, str], list[str]] = {
    (0, "fp32"): ["optimizer.param_groups", "clip_fp32_gradients", "_global_grad_norm"],
    (0, "bf16"): [
        "optimizer.fp16_groups",
        "optimizer.optimizer",
        "optimizer.overflow",
        *(f"optimizer.loss_scale_config.{name}" for name in ("cur_scale", "cur_iter", "last_overflow_iter")),
        *(f"optimizer.loss_scale_config.{name}" for name in ("dynamic_loss_scale", "min_loss_scale")),
    ],
    (1, "fp32"): ["optimizer.bit16_groups", *SHARED, *SCALER, *FRAGMENTS],
    (1, "bf16"): ["optimizer.bf16_groups", *SHARED, *FRAGMENTS],
    (2, "fp32"): ["optimizer.bit16_groups", *SHARED, *SCALER, *FRAGMENTS],
    (2, "bf16"): ["optimizer.bit16_groups", *SHARED, *SCALER, *FRAGMENTS],
    (3, "fp32"): ["optimizer.optimizer", *SCALER, *SHARDS],
    (3, "bf16"): ["optimizer.optimizer", *SCALER, *SHARDS],
}
"""By stage and dtype: attributes of DeepSpeed's engine, of its optimizer, and of a trained parameter."""

SOURCES = {
    "runtime.fp16.unfused_optimizer:FP16_UnfusedOptimizer": ["initialize_optimizer_states"],
    "runtime.fp16.fused_optimizer:FP16_Optimizer": ["initialize_optimizer_states", "fp16_groups", "fp32_groups_flat"],
    "runtime.fp16.loss_scaler:DynamicLossScaler": [
        *("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis", "min_scale", "raise_error_at_min_scale")
    ],
    "runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3": [
        *("_grad_acc_hooks", "_leaf_module_hooks", "create_reduce_and_remove_grad_hooks")
    ],
    "runtime.zero.parameter_offload:DeepSpeedZeRoOffload": ["ds_z3_leaf_module"],
    "runtime.engine:DeepSpeedEngine": ["clip_fp32_gradients", "_global_grad_norm"],
}
"""By class, what no engine on a CPU shows: it stands in the source."""


def lacks(engine: Any, path: str) -> bool:
    """Whether an attribute along ``path`` is missing."""
    first, _, rest = path.partition(".")
    holder = engine.deepspeed
    if first == "parameter":
        holder, path = next(one for one in engine.module.parameters() if one.requires_grad), rest
    for name in path.split("."):
        if name.isdigit():
            holder = holder[int(name)]
        elif hasattr(holder, name):
            holder = getattr(holder, name)
        else:
            return True
    return False


def missing() -> list[str]:
    process_group.init_process_group()
    lacking = []
    for (stage, dtype), paths in ATTRIBUTES.items():
        engine = small.make(stage, dtype)
        small.window(engine, 0, 1, 1)
        lacking += [f"stage {stage}, {dtype}: {path}" for path in (*COUNTERS, *paths) if lacks(engine, path)]
        engine.destroy()
    return lacking


def test_engines_at_every_stage_have_the_attributes() -> None:
    assert processes.share(missing, 1) == [[]]


def test_the_classes_that_need_a_gpu_have_the_attributes() -> None:
    absent = []
    for place, names in SOURCES.items():
        module, name = place.split(":")
        source = inspect.getsource(getattr(importlib.import_module(f"deepspeed.{module}"), name))
        absent += [f"{place}.{one}" for one in names if not re.search(rf"\b{one}\b", source)]
    assert absent == []


def test_the_names_of_a_mesh_are_there() -> None:
    engine = inspect.getsource(importlib.import_module("deepspeed.runtime.engine"))
    assert MESH[0] == importlib.import_module("deepspeed.checkpoint.constants").DS_AUTOTP_UC_META
    assert f"self.{MESH[1]} = self.module.register_forward_pre_hook(" in engine
    assert f'getattr(model, "{MESH[2]}", False)' in engine
    assert f"self.mpu.{MESH[3]}(tensor_model_parallel_size=" in engine
    assert set(mesh._GROUPS) <= vars(importlib.import_module("deepspeed.utils.groups")).keys()


def test_every_attribute_that_the_package_reads_is_named_here() -> None:
    """Of the names in the files, those of DeepSpeed's kind."""
    paths = [path for paths in (*ATTRIBUTES.values(), COUNTERS, MESH, *SOURCES.values()) for path in paths]
    named = {part for path in paths for part in path.split(".")}
    tree = ast.parse("\n".join(map(inspect.getsource, (parameters, optimizer, steps, mesh, leaf_modules))))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    kind = r"_?(ds|hp|lp|fp32|fp16|bf16|bit16|cur|last|persistent|loss|min|raise|dynamic|clip|global|micro|skipped)_\w+"
    read = {name for name in strings | attributes if re.fullmatch(kind, name)}
    assert sorted(read - named - set(dir(torch.nn.utils))) == []
