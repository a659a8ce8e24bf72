"""Optimizers that train other weights than those they are evaluated by: what such an optimizer keeps, and the average.

The parameter groups of its torch optimizer have the option ``averaging``, a number b in (0, 1], and it keeps a tensor
``z`` of the shape of each optimizer tensor. The weights that are trained are y = (1 - b) z + b x, and x is the average,
by which the model is evaluated and exported (Defazio et al. 2024, arXiv 2405.15682, equation 4).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from arctic_training.distributed import collectives
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.internals.optimizer import optimizer_params, param_fragments, sharing_group, torch_optimizer
from arctic_training.engine.internals.parameters import is_partitioned_param, local_tensor


def averaging(groups: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns b of an optimizer with these parameter groups; None for one that evaluates what it trains."""
    return groups[0].get("averaging")


def average(trained: Tensor, z: Tensor, b: float) -> Tensor:
    """Returns x of ``trained``, which is y, and ``z``: fp32 of their shape."""
    return trained.detach().lerp(z, 1 - 1 / b)


def averaged_weights(engine: TrainedEngine) -> dict[str, Tensor] | None:
    """Returns the average of each trained parameter as `replaced_weights` takes it, in fp32, by name.

    None for an optimizer that evaluates what it trains, and where the weights in the model are not the trained ones.
    All ranks call it together.
    """
    optimizer = torch_optimizer(engine.deepspeed.optimizer)
    b = averaging(optimizer.param_groups)
    if b is None or not engine.holds_trained_weights:
        return None
    trained = {name: one for name, one in engine.module.named_parameters() if one.requires_grad}
    averages = {id(one): _zeros(local_tensor(one)) for one in trained.values()}
    held = param_fragments(engine.deepspeed.optimizer)
    for tensor, fragments in zip(optimizer_params(engine.deepspeed.optimizer), held, strict=True):
        z = optimizer.state[tensor]["z"] if optimizer.state.get(tensor) else tensor
        values = average(tensor, z, b).flatten()
        for fragment in fragments:
            start = 0 if is_partitioned_param(fragment.parameter) else fragment.start
            part = values[fragment.offset : fragment.offset + fragment.numel]
            averages[id(fragment.parameter)].view(-1)[start : start + fragment.numel].copy_(part)
    if engine.deepspeed.zero_optimization_stage() in (1, 2):  # each element is in the optimizer of one rank
        for parameter in trained.values():
            collectives.all_reduce(averages[id(parameter)], sharing_group(engine.deepspeed.optimizer))
    return {name: averages[id(one)] for name, one in trained.items()}


def _zeros(local: Tensor) -> Tensor:
    return torch.zeros(local.shape, dtype=torch.float32, device=local.device)


def restart_average(engine: TrainedEngine) -> None:
    """Has an optimizer that keeps an average take the weights that are trained now as all that it has averaged."""
    optimizer = torch_optimizer(engine.deepspeed.optimizer)
    if averaging(optimizer.param_groups) is None:
        return
    for tensor in optimizer_params(engine.deepspeed.optimizer):
        if state := optimizer.state.get(tensor):
            state["z"].copy_(tensor.detach())
