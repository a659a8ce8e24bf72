"""Attributes of DeepSpeed's optimizers: the tensors that torch's optimizer steps, and which parameters those are of.

``optimizer`` is that of DeepSpeed's engine, which at most stages wraps one of torch's. An *optimizer tensor* is one
that torch's optimizer steps: a parameter (ZeRO stage 0 in fp32), an fp32 copy of one or several, or of a shard.
"""

from collections.abc import Iterator
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.distributed import ProcessGroup

from arctic_training.distributed import process_group
from arctic_training.engine.internals.parameters import is_partitioned_param, local_tensor, unpadded_numel

if TYPE_CHECKING:
    from deepspeed.runtime.base_optimizer import DeepSpeedOptimizer

_GROUPS = ("bit16_groups", "bf16_groups", "fp16_groups")
"""The parameters of the optimizers of stages 1 and 2, of stage 1 in bf16, and of stage 3 and stage 0 below fp32."""


class ParamFragment(NamedTuple):
    """Consecutive elements of a parameter in an optimizer tensor, both taken as flat."""

    parameter: torch.nn.Parameter
    start: int
    """The first element in the parameter."""
    offset: int
    """The first element in the optimizer tensor."""
    numel: int
    """At stage 3 with the padding of the shard."""


def torch_optimizer(optimizer: "DeepSpeedOptimizer") -> torch.optim.Optimizer:
    """Returns torch's optimizer: the wrapped one, or ``optimizer`` itself."""
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def fp32_master_params(optimizer: "DeepSpeedOptimizer") -> list[torch.Tensor]:
    """Returns the fp32 copies ([elements] each) of the parameters that are stepped; none at stage 0 in fp32."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return []
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3 lends them to torch's during its step only
        return list(optimizer.fp32_partitioned_groups_flat)
    return group_params(optimizer.optimizer)


def optimizer_params(optimizer: "DeepSpeedOptimizer") -> list[torch.Tensor]:
    """Returns the optimizer tensors ([elements] each, or of a parameter's shape), in the order of `param_fragments`."""
    return fp32_master_params(optimizer) or group_params(torch_optimizer(optimizer))


def param_fragments(optimizer: "DeepSpeedOptimizer") -> list[list[ParamFragment]]:
    """Returns which elements of which parameters each optimizer tensor of this rank holds."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3
        return [_shard_fragments(group) for group in optimizer.fp16_groups]
    groups = _groups(optimizer)
    if groups is None:  # stage 0 in fp32: the parameters themselves
        return [[ParamFragment(one, 0, 0, one.numel())] for one in group_params(optimizer)]  # type: ignore[arg-type]
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


def sharing_group(optimizer: "DeepSpeedOptimizer") -> ProcessGroup:
    """Returns the ranks that share the optimizer tensors at ZeRO stages 1 and 2: on a mesh those of one part."""
    group: ProcessGroup = optimizer.dp_process_group
    return group


def trained_groups(optimizer: "DeepSpeedOptimizer") -> list[list[torch.nn.Parameter]]:
    """Returns the trained parameters of each parameter group of torch's optimizer."""
    groups = _groups(optimizer)
    if groups is None:
        groups = [group["params"] for group in optimizer.param_groups]
    indices = list(range(len(groups)))
    if split := getattr(optimizer, "sub_group_to_group_id", None):  # stage 3 splits groups
        indices = list(split.values())
    trained: list[list[torch.nn.Parameter]] = [[] for _ in torch_optimizer(optimizer).param_groups]
    for index, group in zip(indices, groups, strict=True):
        trained[index] += group
    return trained


def copy_to_masters(optimizer: "DeepSpeedOptimizer") -> None:
    """Sets the fp32 copies of the parameters to the values that this rank holds of these. Copies on NVMe stay."""
    masters = fp32_master_params(optimizer)
    for master, held in zip(masters, param_fragments(optimizer) if masters else [], strict=True):
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


def master_padding(optimizer: "DeepSpeedOptimizer") -> Iterator[torch.Tensor]:
    """Yields, at stage 3, the padding ([elements]) of the fp32 copy of each trained parameter."""
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):  # not stage 3, or nothing is trained
        return
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        shards = flat.detach().split([parameter.ds_tensor.ds_numel for parameter in group])
        for parameter, shard in zip(group, shards, strict=True):
            yield shard[unpadded_numel(parameter) :]


def group_params(optimizer: "DeepSpeedOptimizer") -> list[torch.Tensor]:
    """Returns the tensors of all parameter groups of ``optimizer``."""
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def _groups(optimizer: "DeepSpeedOptimizer") -> list[list[Any]] | None:
    return next((vars(optimizer)[name] for name in _GROUPS if name in vars(optimizer)), None)
