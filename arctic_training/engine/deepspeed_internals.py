"""DeepSpeed's undocumented attributes. No other file of ``engine/`` or ``checkpoint/`` reads one, but `leaf_modules`.

`tests/engine/test_deepspeed_internals.py` names each of them on real engines, so that a new DeepSpeed fails by name.
``optimizer`` is here that of DeepSpeed's engine, which at most stages wraps one of torch's. An *optimizer tensor* is
one that torch's optimizer steps: a parameter (ZeRO stage 0 in fp32), an fp32 copy of one or several, or of a shard.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from arctic_training.distributed import process_group

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.base_optimizer import DeepSpeedOptimizer

_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
_GROUPS = ("bit16_groups", "bf16_groups", "fp16_groups")
"""The parameters of the optimizers of stages 1 and 2, of stage 1 in bf16, and of stage 3 and stage 0 below fp32."""
_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
_MESH = ("mpu", "_TENSOR_MODEL_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP", "_DATA_PARALLEL_GROUP")
"""The names in ``deepspeed.utils.groups`` by which DeepSpeed finds the groups of a mesh."""
_TENSOR_PARALLEL = "ds_autotp_universal_checkpoint_meta"
"""The attribute of a parameter in which DeepSpeed says how processes divide it."""


class ParamFragment(NamedTuple):
    """Consecutive elements of a parameter in an optimizer tensor, both taken as flat."""

    parameter: torch.nn.Parameter
    start: int
    """The first element in the parameter."""
    offset: int
    """The first element in the optimizer tensor."""
    numel: int
    """At stage 3 with the padding of the shard."""


def is_partitioned_param(parameter: torch.Tensor) -> bool:
    """Returns whether ZeRO stage 3 holds the parameter in shards."""
    return hasattr(parameter, "ds_id")


def shard_dim(parameter: torch.Tensor) -> int | None:
    """Returns the dimension along which tensor parallelism divides the parameter; None where it is whole."""
    dim: int | None = getattr(parameter, _TENSOR_PARALLEL, {}).get("partition_dim")
    return dim


def full_shape(parameter: torch.Tensor) -> torch.Size:
    """Returns the shape of the parameter when it is gathered."""
    if shard_dim(parameter) is not None:
        return torch.Size(getattr(parameter, _TENSOR_PARALLEL)["logical_shape"])
    return getattr(parameter, "ds_shape", parameter.shape)


def local_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """Returns what this rank holds: at stage 3 its shard of the flat parameter, [padded shard], else the parameter."""
    tensor: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return tensor.detach()


def padding(parameter: torch.Tensor) -> torch.Tensor:
    """Returns the end of this rank's shard ([elements]) that fills it up to the length of the other ranks'."""
    return local_tensor(parameter)[_unpadded(parameter) :]


def master_padding(optimizer: "DeepSpeedOptimizer") -> Iterator[torch.Tensor]:
    """Yields, at stage 3, the padding ([elements]) of the fp32 copy of each trained parameter."""
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):  # not stage 3, or nothing is trained
        return
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        shards = flat.detach().split([parameter.ds_tensor.ds_numel for parameter in group])
        for parameter, shard in zip(group, shards, strict=True):
            yield shard[_unpadded(parameter) :]


def _unpadded(parameter: Any) -> int:
    numel, size = full_shape(parameter).numel(), int(parameter.ds_tensor.ds_numel)
    return min(max(numel - process_group.rank() * size, 0), size)


def has_flat_gradient(parameter: torch.Tensor) -> bool:
    """Returns whether DeepSpeed keeps the parameter's gradient elsewhere than in its ``grad``."""
    return is_partitioned_param(parameter) or hasattr(parameter, "_hp_mapping")


def torch_optimizer(optimizer: "DeepSpeedOptimizer") -> torch.optim.Optimizer:
    """Returns torch's optimizer: the wrapped one, or ``optimizer`` itself."""
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def fp32_master_params(optimizer: "DeepSpeedOptimizer") -> list[torch.Tensor]:
    """Returns the fp32 copies ([elements] each) of the parameters that are stepped; none at stage 0 in fp32."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return []
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3 lends them to torch's during its step only
        return list(optimizer.fp32_partitioned_groups_flat)
    return _params(optimizer.optimizer)


def optimizer_params(optimizer: "DeepSpeedOptimizer") -> list[torch.Tensor]:
    """Returns the optimizer tensors ([elements] each, or of a parameter's shape), in the order of `fragments`."""
    return fp32_master_params(optimizer) or _params(torch_optimizer(optimizer))


def fragments(optimizer: "DeepSpeedOptimizer") -> list[list[ParamFragment]]:
    """Returns which elements of which parameters each optimizer tensor of this rank holds."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3
        return [_shard_fragments(group) for group in optimizer.fp16_groups]
    groups = _groups(optimizer)
    if groups is None:  # stage 0 in fp32: the parameters themselves
        return [[ParamFragment(one, 0, 0, one.numel())] for one in _params(optimizer)]  # type: ignore[arg-type]
    if hasattr(optimizer, "fp32_groups_flat"):  # stage 0 below fp32 with DeepSpeed's fused Adam: one copy per group
        ends = [list(accumulate(parameter.numel() for parameter in group)) for group in groups]
        return [
            [ParamFragment(one, 0, end - one.numel(), one.numel()) for one, end in zip(group, own, strict=True)]
            for group, own in zip(groups, ends, strict=True)
        ]
    if not hasattr(groups[0][0], "_hp_mapping"):  # stage 0 below fp32: one copy per parameter
        return [[ParamFragment(one, 0, 0, one.numel())] for one in chain.from_iterable(groups)]
    return [_mapped_fragments(group) for group in groups]


def _shard_fragments(group: list[Any]) -> list[ParamFragment]:
    sizes = [int(parameter.ds_tensor.ds_numel) for parameter in group]
    offsets = [sum(sizes[:n]) for n in range(len(sizes))]
    rank = process_group.rank()
    return [ParamFragment(one, rank * n, at, n) for one, n, at in zip(group, sizes, offsets, strict=True)]


def _mapped_fragments(group: list[Any]) -> list[ParamFragment]:
    mapped = [(parameter, parameter._hp_mapping) for parameter in group]
    return [
        ParamFragment(
            parameter,
            mapping.lp_fragment_address.start,
            mapping.hp_fragment_address.start,
            mapping.hp_fragment_address.numel,
        )
        for parameter, mapping in mapped
        if mapping is not None
    ]


def trained_groups(optimizer: "DeepSpeedOptimizer") -> list[list[torch.nn.Parameter]]:
    """Returns the trained parameters of each parameter group of torch's optimizer."""
    groups = _groups(optimizer)
    if groups is None:
        groups = [group["params"] for group in optimizer.param_groups]
    # stage 3 splits groups
    indices = list(getattr(optimizer, "sub_group_to_group_id", {}).values()) or range(len(groups))
    trained: list[list[torch.nn.Parameter]] = [[] for _ in torch_optimizer(optimizer).param_groups]
    for index, group in zip(indices, groups, strict=True):
        trained[index] += group
    return trained


def copy_to_masters(optimizer: "DeepSpeedOptimizer") -> None:
    """Sets the fp32 copies of the parameters to the values that this rank holds of these. Copies on NVMe stay."""
    masters = fp32_master_params(optimizer)
    for master, held in zip(masters, fragments(optimizer) if masters else [], strict=True):
        flat = master.detach().flatten()
        for one in held if flat.numel() else ():
            start = 0 if is_partitioned_param(one.parameter) else one.start
            values = local_tensor(one.parameter).flatten()[start : start + one.numel]
            flat[one.offset : one.offset + one.numel] = values
        master.detach().copy_(flat.view_as(master))


def gather_persistent_params(optimizer: "DeepSpeedOptimizer") -> None:
    """Sets the small parameters, which every rank holds in full at stage 3, to the values of their shards."""
    persistent = getattr(optimizer, "persistent_parameters", [])
    if persistent:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)


def end_prefetch(deepspeed: "DeepSpeedEngine") -> None:
    """Waits for parameters that ZeRO stage 3 still gathers for a forward pass that does not come, and partitions them:
    nothing else could gather them meanwhile."""
    if any(getattr(getattr(one, "ds_status", None), "name", "") == "INFLIGHT" for one in deepspeed.module.parameters()):
        deepspeed.optimizer.empty_partition_cache()


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


def end_input_check(deepspeed: "DeepSpeedEngine") -> None:
    """Keeps DeepSpeed from comparing the first batch of the processes that divide a model, by a pickle of all of it."""
    deepspeed.first_dataloader_check.remove()


def end_tensor_parallel() -> None:
    """Makes DeepSpeed forget the groups of a mesh, which it would take for those of the next engine too."""
    vars(importlib.import_module("deepspeed.utils.groups")).update(dict.fromkeys(_MESH))
    importlib.import_module("deepspeed.module_inject").set_autotp_mode(training=False)


def add_overflow_check(deepspeed: "DeepSpeedEngine") -> None:
    """Gives stage 0 in fp32 what the other optimizers have: a gradient norm, and no step by a gradient not finite."""
    optimizer, limit = deepspeed.optimizer, float(deepspeed.gradient_clipping())
    parameters = _params(optimizer)
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
        held = [tensor for group in inner.param_groups for tensor in group["params"] if tensor.grad is not None]
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


def _params(optimizer: "DeepSpeedOptimizer") -> list[torch.Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def _groups(optimizer: "DeepSpeedOptimizer") -> list[list[Any]] | None:
    return next((vars(optimizer)[name] for name in _GROUPS if name in vars(optimizer)), None)
