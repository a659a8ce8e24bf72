"""Attributes that DeepSpeed keeps at a parameter: its shard of ZeRO stage 3, and how processes divide it."""

from typing import Any, cast

import torch

from arctic_training.distributed import process_group

_TENSOR_PARALLEL = "ds_autotp_universal_checkpoint_meta"
"""The attribute of a parameter in which DeepSpeed says how processes divide it."""


def is_partitioned_param(parameter: torch.Tensor) -> bool:
    """Returns whether ZeRO stage 3 holds the parameter in shards."""
    return hasattr(parameter, "ds_id")


def shard_dim(parameter: torch.Tensor) -> int | None:
    """Returns the dimension along which tensor parallelism divides the parameter; None where it is whole."""
    return getattr(parameter, _TENSOR_PARALLEL, {}).get("partition_dim")


def full_shape(parameter: torch.Tensor) -> torch.Size:
    """Returns the shape of the parameter when it is gathered."""
    if shard_dim(parameter) is not None:
        return torch.Size(getattr(parameter, _TENSOR_PARALLEL)["logical_shape"])
    return getattr(parameter, "ds_shape", parameter.shape)


def local_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """Returns what this rank holds: at stage 3 its shard of the flat parameter, [padded shard], else the parameter."""
    tensor: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return tensor.detach()


def empty_as_partitioned(parameter: torch.nn.Parameter) -> None:
    """Leaves of a parameter on the meta device what stage 3 leaves of one: no elements, and its shape."""
    shape, known = parameter.shape, cast(Any, parameter)
    parameter.data = torch.empty(0, dtype=parameter.dtype, device="meta")
    known.ds_shape, known.ds_numel = shape, shape.numel()


def padding(parameter: torch.Tensor) -> torch.Tensor:
    """Returns the end of this rank's shard ([elements]) that fills it up to the length of the other ranks'."""
    return local_tensor(parameter)[unpadded_numel(parameter) :]


def unpadded_numel(parameter: Any) -> int:
    """Returns how many elements of this rank's shard are not padding."""
    numel, size = full_shape(parameter).numel(), int(parameter.ds_tensor.ds_numel)
    return min(max(numel - process_group.rank() * size, 0), size)


def has_flat_gradient(parameter: torch.Tensor) -> bool:
    """Returns whether DeepSpeed keeps the parameter's gradient elsewhere than in its ``grad``."""
    return is_partitioned_param(parameter) or hasattr(parameter, "_hp_mapping")
