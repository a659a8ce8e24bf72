"""The state of an engine on one rank, apart from its weights: saved between steps and restored bit for bit.

A snapshot is a mapping of tensors, numbers, strings, lists and mappings, so that it is read without a pickle:

    layout     see `layout`
    counters   global_steps, global_samples, micro_steps, skipped_steps
    last_lr    the learning rate of the last step
    schedule   the state dict of the scheduler
    scaler     the loss scale of fp16 and what decides about the next one, for each object that holds it
    groups     the optimizer's parameter groups, without their parameters
    shadows    the fp32 master parameters, one flat tensor for each optimizer tensor; empty at stage 0 in fp32
    moments    the optimizer's state of each optimizer tensor, such as ``exp_avg`` (of the tensor's shape) and ``step``
    fragments  see `fragments`: by these the snapshots of all ranks are resharded
    buffers    the module's persistent buffers, by name
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.internals.optimizer import (
    fp32_master_params,
    gather_persistent_params,
    optimizer_params,
    param_fragments,
    torch_optimizer,
    trained_groups,
)
from arctic_training.engine.internals.parameters import full_shape, local_tensor, shard_dim
from arctic_training.engine.internals.steps import counters, scaler_holders, scaler_state
from arctic_training.errors.types import CheckpointError, ResumeError


def weights(engine: TrainedEngine, *, trainable_only: bool = False) -> dict[str, torch.Tensor]:
    """Returns the parameters by name, or those that are trained: at ZeRO stage 3 this rank's flat shard of each
    ([padded shard]), else in full."""
    parameters = engine.module.named_parameters()
    return {name: local_tensor(one) for name, one in parameters if one.requires_grad or not trainable_only}


def snapshot(engine: TrainedEngine) -> dict[str, Any]:
    """Returns the snapshot of this rank; its tensors are the engine's own.

    Raises `CheckpointError` for state that cannot be read back without a pickle.
    """
    optimizer = torch_optimizer(engine.deepspeed.optimizer)
    stepped = optimizer_params(engine.deepspeed.optimizer)
    state = {
        "layout": layout(engine),
        "counters": counters(engine.deepspeed),
        "last_lr": engine.last_lr,
        "schedule": engine.deepspeed.lr_scheduler.state_dict() if engine.deepspeed.lr_scheduler else {},
        "scaler": scaler_state(engine.deepspeed.optimizer),
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "shadows": [tensor.detach() for tensor in fp32_master_params(engine.deepspeed.optimizer)],
        "moments": [dict(optimizer.state[one]) if one in optimizer.state else {} for one in stepped],
        "fragments": fragments(engine),
        "buffers": dict(_persistent_buffers(engine.module)),
    }
    require_plain(state, "engine")
    return state


def restore(engine: TrainedEngine, state: Mapping[str, Any], saved_weights: Mapping[str, torch.Tensor]) -> None:
    """Copies a snapshot and the weights of `weights` into the engine; `require_fit` must have passed. Weights that were
    not saved stay as they are.

    ``shadows`` and ``moments`` may be iterators, one tensor in memory at a time.
    """
    optimizer, parameters = torch_optimizer(engine.deepspeed.optimizer), dict(engine.module.named_parameters())
    with torch.no_grad():
        for name in saved_weights:
            local_tensor(parameters[name]).copy_(saved_weights[name])
        gather_persistent_params(engine.deepspeed.optimizer)
        for name, buffer in _persistent_buffers(engine.module):
            buffer.copy_(state["buffers"][name])
        masters = fp32_master_params(engine.deepspeed.optimizer)
        for tensor, saved in zip(masters, state["shadows"], strict=True):
            tensor.copy_(saved)
        for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
            group.update(saved)
        for tensor, saved in zip(optimizer_params(engine.deepspeed.optimizer), state["moments"], strict=True):
            _restore_optimizer_state(optimizer, tensor, saved)
    for holder, numbers in zip(scaler_holders(engine.deepspeed.optimizer), state["scaler"], strict=True):
        vars(holder).update(numbers)
    for name, value in state["counters"].items():
        setattr(engine.deepspeed, name, value)
    if engine.deepspeed.lr_scheduler:
        engine.deepspeed.lr_scheduler.load_state_dict(state["schedule"])
    engine.last_lr = state["last_lr"]


def require_fit(engine: TrainedEngine, state: Mapping[str, Any], saved_weights: Mapping[str, torch.Tensor]) -> None:
    """Raises `ResumeError` for a snapshot of another model, optimizer or precision."""
    own, saved = layout(engine), state["layout"]
    keys = [key for key in ("dtype", "optimizer") if own[key] != saved.get(key)]
    different = [f"{key}: saved {saved.get(key)}, now {own[key]}" for key in keys]
    for key in ("parameters", "trained"):
        if own[key] != saved[key]:
            odd = sorted(set(own[key]) ^ set(saved[key])) or [n for n in own[key] if own[key][n] != saved[key][n]]
            different.append(f"{key}: {', '.join(odd[:3])}{f' and {len(odd) - 3} more' if len(odd) > 3 else ''}")
    if odd := sorted(dict(_persistent_buffers(engine.module)).keys() ^ state["buffers"].keys()):
        different.append(f"buffers: {', '.join(odd[:3])}")
    if saved_weights.keys() not in (own["parameters"].keys(), set(own["trained"])):
        different.append("weights: the file does not hold the parameters of its layout")
    if different:
        raise ResumeError(f"the checkpoint does not fit this run's model and engine: {'; '.join(different)}")


def layout(engine: TrainedEngine) -> dict[str, Any]:
    """Returns how the engine holds its state.

    All of it must be equal for a snapshot to be restored as it is; all but ``stage``, ``processes`` and ``divided`` for
    it to be resharded. ``parameters`` are full shapes by name, ``trained`` names, ``groups`` the names in each
    parameter group. ``divided`` says, by name, along which dimension and among how many processes tensor parallelism
    divides a parameter; checkpoints of before there was such a thing lack it.
    """
    deepspeed = engine.deepspeed
    names = _names(engine)
    return {
        "stage": int(deepspeed.zero_optimization_stage()),
        "processes": process_group.world_size(),
        "dtype": str(deepspeed.get_data_types()[0]).removeprefix("torch."),
        "optimizer": type(torch_optimizer(deepspeed.optimizer)).__name__,
        "parameters": {name: list(full_shape(one)) for name, one in engine.module.named_parameters()},
        "divided": {name: how for name, one in engine.module.named_parameters() if (how := _division(one))},
        "trained": [name for name, one in engine.module.named_parameters() if one.requires_grad],
        "groups": [[names[id(one)] for one in group] for group in trained_groups(deepspeed.optimizer)],
    }


def fragments(engine: TrainedEngine) -> list[list[tuple[str, int, int, int]]]:
    """Returns, for each optimizer tensor, its fragments: (parameter, first element in it, first element in the tensor,
    number of elements)."""
    names = _names(engine)
    held = param_fragments(engine.deepspeed.optimizer)
    return [[(names[id(one.parameter)], one.start, one.offset, one.numel) for one in tensor] for tensor in held]


def require_plain(value: object, path: str) -> None:
    """Raises `CheckpointError` for anything but tensors, numbers, strings, None, and lists and mappings of them."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            require_plain(key, f"a key of {path}")
            require_plain(one, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for n, one in enumerate(value):
            require_plain(one, f"{path}[{n}]")
    elif not isinstance(value, (torch.Tensor, int, float, str, bytes, type(None))):
        raise CheckpointError(
            f"{path} is a {type(value).__name__}, which only a pickle could hold; "
            "state_dict may return tensors, numbers, strings, lists and mappings of them"
        )


def _division(parameter: torch.Tensor) -> list[int]:
    """Returns the dimension that processes divide and their number; empty for a whole parameter."""
    dim = shard_dim(parameter)
    return [] if dim is None else [dim, full_shape(parameter)[dim] // parameter.shape[dim]]


def _names(engine: TrainedEngine) -> dict[int, str]:
    return {id(parameter): name for name, parameter in engine.module.named_parameters()}


def _persistent_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the buffers in the state dict; the others are functions of the model's config."""
    names = module.state_dict(keep_vars=True).keys()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in names)


def _restore_optimizer_state(optimizer: torch.optim.Optimizer, tensor: torch.Tensor, saved: Mapping[str, Any]) -> None:
    states = optimizer.state
    if not saved:
        states.pop(tensor, None)
        return
    state = states[tensor]
    for key in set(state) - set(saved):
        del state[key]
    for key, value in saved.items():
        if not isinstance(value, torch.Tensor):
            state[key] = value
        elif isinstance(held := state.get(key), torch.Tensor) and held.shape == value.shape:
            held.copy_(value)  # DeepSpeed may hold views of it
        else:
            # torch keeps the step count with the tensor for fused and capturable forms, else on the CPU
            with_tensor = any(optimizer.param_groups[0].get(form) for form in ("fused", "capturable"))
            is_on_cpu = value.numel() == 1 and key == "step" and not with_tensor
            state[key] = value.to("cpu" if is_on_cpu else tensor.device, copy=True)
