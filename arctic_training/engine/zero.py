"""ZeRO stage 3, where each process holds a part of every parameter: models made so, and whole parameters again."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from arctic_training.distributed import collectives, process_group


class _Stage3:
    """What transformers asks for, to part the weights while it makes or loads a model."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True


@contextmanager
def sharded_construction(config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, models of transformers are made and loaded in parts when ``config`` (DeepSpeed's) is of ZeRO stage 3.

    No process then ever holds a whole model that is loaded; of one that is drawn see `build_random_model`. Other models
    are made whole, and parted by `initialize`.
    """
    if config.get("zero_optimization", {}).get("stage") != 3:
        yield
        return
    process_group.init_deepspeed()
    known = importlib.import_module("transformers.integrations.deepspeed")
    told = _Stage3(dict(config))  # transformers keeps a weak reference
    known.set_hf_deepspeed_config(told)
    try:
        yield
    finally:
        known.unset_hf_deepspeed_config()


def build_random_model(draw: Callable[[], torch.nn.Module], config: Mapping[str, Any]) -> torch.nn.Module:
    """Returns the model of transformers that ``draw`` makes, with the same weights at each stage, on any processes.

    Drawn in parts, weights would be others: in another order, by the first process alone, on a GPU where there is one.
    So at ZeRO stage 3 the first process draws the model whole, in main memory, and gives all processes their parts.
    """
    if config.get("zero_optimization", {}).get("stage") != 3:
        return draw()
    with collectives.main_process_first() as first:
        whole = draw() if first else None
    state = collectives.broadcast_object(torch.get_rng_state())
    with sharded_construction(config):
        model = draw()
    weights = dict(whole.named_parameters()) if whole is not None else {}
    buffers = collectives.broadcast_object(dict(whole.named_buffers()) if whole is not None else {})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            with modified([parameter]):
                if weights:
                    parameter.copy_(weights[name])
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    torch.set_rng_state(state)
    return model


def is_partitioned(module: torch.nn.Module) -> bool:
    """Whether this process holds only parts of the module's parameters."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


@contextmanager
def gathered(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters are whole on every process, for reading. All processes enter it together."""
    parted = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not parted:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parted):
        yield


@contextmanager
def modified(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters are whole, and what the main process makes of them stays. All processes enter it."""
    parted = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not parted:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parted, modifier_rank=0):
        yield


def clear_padding(deepspeed: Any) -> None:
    """Zero what fills the last process's part of a parameter up to the others' length.

    DeepSpeed leaves there what the memory held before, which would reach fp32 copies, checkpoints and checks for NaN.
    """
    for parameter in deepspeed.module.parameters():
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor[_own(parameter) :].zero_()
    optimizer = deepspeed.optimizer
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):  # not ZeRO stage 3, or nothing is trained
        return
    for group, copy in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        parts = copy.detach().split([parameter.ds_tensor.ds_numel for parameter in group])
        for parameter, part in zip(group, parts, strict=True):
            part[_own(parameter) :].zero_()


def _own(parameter: Any) -> int:
    """How many elements of the parameter this process's part holds; the rest of the part is padding."""
    whole, size = int(parameter.ds_numel), int(parameter.ds_tensor.ds_numel)
    return min(max(whole - process_group.rank() * size, 0), size)


def full_shape(tensor: torch.Tensor) -> torch.Size:
    """The shape of a parameter when it is whole."""
    return getattr(tensor, "ds_shape", tensor.shape)


def full_parameter(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A whole copy, where the parameter is. All processes call it together."""
    with gathered([parameter]):
        return parameter.detach().clone()


def full_gradient(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """The whole gradient of the window in fp32, between its last backward and its step, at any ZeRO stage.

    The mean over micro-batches and processes, before clipping. All processes call it together.
    """
    if not hasattr(parameter, "ds_id") and not hasattr(parameter, "_hp_mapping"):
        return None if parameter.grad is None else parameter.grad.detach().float().clone()  # clipped in place
    from deepspeed.utils import safe_get_full_grad

    return safe_get_full_grad(parameter)  # type: ignore[no-any-return]


def is_meta_tensor_error(error: Exception) -> bool:
    """Whether ``error`` says that tensors on torch's meta device have no values, as of a model without weights."""
    return isinstance(error, NotImplementedError) or " meta" in str(error)
