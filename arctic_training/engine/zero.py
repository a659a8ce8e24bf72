"""ZeRO stage 3, where each rank holds a shard of every parameter: sharded construction, and gathered parameters."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from arctic_training.distributed import collectives, process_group
from arctic_training.engine.internals.parameters import (
    full_shape,
    has_flat_gradient,
    is_partitioned_param,
    local_tensor,
    shard_dim,
)
from arctic_training.engine.tensor_parallel import cut, join


class _ZeroConfig:
    """Config that transformers reads to shard the weights while it builds or loads a model."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True


@contextmanager
def sharded_construction(config: Mapping[str, Any]) -> Iterator[None]:
    """Has transformers build and load models in shards inside the block when ``config`` (DeepSpeed's) has stage 3.

    No rank then holds a full model that is loaded; for random weights see `build_random_model`. Other models are built
    in full, and sharded by `initialize`.
    """
    if config.get("zero_optimization", {}).get("stage") != 3:
        yield
        return
    process_group.init_deepspeed()
    integration = importlib.import_module("transformers.integrations.deepspeed")
    zero_config = _ZeroConfig(dict(config))  # transformers keeps a weak reference
    integration.set_hf_deepspeed_config(zero_config)
    try:
        yield
    finally:
        integration.unset_hf_deepspeed_config()


def build_random_model(build: Callable[[], torch.nn.Module], config: Mapping[str, Any]) -> torch.nn.Module:
    """Returns the transformers model that ``build`` makes, with the same random weights at each stage and world size.

    Built in shards, the weights would be others: drawn in another order, by rank 0 alone, on a GPU where there is one.
    So at ZeRO stage 3 rank 0 builds the model in full, in CPU memory, and gives all ranks their shards.
    """
    if config.get("zero_optimization", {}).get("stage") != 3:
        return build()
    with collectives.main_process_first() as first:
        full = build() if first else None
    rng = collectives.broadcast_object(torch.get_rng_state())
    with sharded_construction(config):
        model = build()
    weights = dict(full.named_parameters()) if full is not None else {}
    buffers = collectives.broadcast_object(dict(full.named_buffers()) if full is not None else {})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            with gathered([parameter], modify=True):
                if weights:
                    parameter.copy_(weights[name])
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    torch.set_rng_state(rng)
    return model


def is_partitioned(module: torch.nn.Module) -> bool:
    """Returns whether this rank holds only parts of the module's parameters."""
    return any(is_part(parameter) for parameter in module.parameters())


def is_part(tensor: torch.Tensor) -> bool:
    """Returns whether this rank holds only a part of the parameter: at ZeRO stage 3, or by tensor parallelism."""
    return is_partitioned_param(tensor) or shard_dim(tensor) is not None


@contextmanager
def gathered(parameters: Iterable[torch.Tensor], *, modify: bool = False) -> Iterator[None]:
    """Gathers these parameters in full on every rank inside the block. All ranks enter it together.

    With ``modify`` the values that rank 0 gives them are kept; else they are for reading only. Those that tensor
    parallelism divides can only be read.
    """
    every = [parameter for parameter in parameters if is_part(parameter)]
    sharded = [parameter for parameter in every if is_partitioned_param(parameter)]
    divided = [(parameter, parameter.data) for parameter in every if shard_dim(parameter) is not None]
    with ExitStack() as stack:
        if sharded:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if modify else None))
        try:
            for parameter, part in divided:
                parameter.data = join(parameter, part)
            yield
        finally:
            for parameter, part in divided:
                parameter.data = part


def full_parameter(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Returns a copy of the parameter in its full shape, dtype and on its device. All ranks call it together.

    Used by user code and tests, not by the package.
    """
    with gathered([parameter]):
        return parameter.detach().clone()


def full_gradient(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """Returns the full gradient (fp32, the shape of the parameter) between the last backward of a step and the step.

    It is the mean over micro-batches and ranks, before clipping, at any ZeRO stage. All ranks call it together. Used by
    user code and tests, not by the package.
    """
    if not has_flat_gradient(parameter):
        return None if parameter.grad is None else parameter.grad.detach().float().clone()  # clipped in place
    from deepspeed.utils import safe_get_full_grad

    gradient: torch.Tensor | None = safe_get_full_grad(parameter)
    return None if gradient is None else join(parameter, gradient)


def resharded(saved: Sequence[torch.Tensor], parameter: torch.Tensor) -> torch.Tensor:
    """Returns what this rank holds of ``parameter`` of the values that all ranks of another layout ``saved``.

    They saved it as `full_from_saved` says.
    """
    full = full_from_saved(saved, full_shape(parameter))
    if not is_partitioned_param(parameter):
        return cut(parameter, full)
    size = local_tensor(parameter).numel()
    part = full.new_zeros(size)
    shard = full.flatten()[size * process_group.rank() :][:size]
    part[: len(shard)] = shard
    return part


def full_from_saved(saved: Sequence[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Returns a tensor of ``shape`` by what all ranks saved of it, in their order.

    That is the whole tensor each, at ZeRO stage 3 its flat shards, [padded shard], or the parts into which tensor
    parallelism divides it along one dimension.
    """
    if (first := saved[0]).shape == shape:
        return first
    if first.dim() == 1:
        return torch.cat([part.flatten() for part in saved])[: shape.numel()].view(shape)
    dim = next(n for n, (part, size) in enumerate(zip(first.shape, shape, strict=True)) if part != size)
    return torch.cat(list(saved[: shape[dim] // first.shape[dim]]), dim)
