"""Everything of an engine that changes while it trains, as plain tensors, numbers and names, and back, bit for bit.

A snapshot is this process's share, taken between updates, when no gradient is held. It holds no class of DeepSpeed's,
so it is read without a pickle. ``fragments`` says which elements of which parameter each optimizer tensor holds, so
that shares can be put together for another number of processes or another ZeRO stage.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate, chain
from typing import Any

import torch

from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.errors.types import CheckpointError, ResumeError

_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
_GROUPS = ("bit16_groups", "bf16_groups", "fp16_groups")
"""How DeepSpeed's optimizers of stages 1 and 2, of stage 1 in bf16, and of stage 0 below fp32 call their parameters."""
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def weights(engine: TrainedEngine) -> dict[str, torch.Tensor]:
    """The parameters by name: whole ones, the same on every process; at ZeRO stage 3 this process's part of each."""
    return {name: _held(parameter) for name, parameter in engine.module.named_parameters()}


def snapshot(engine: TrainedEngine) -> dict[str, Any]:
    """All but the weights (`weights`). Raises `CheckpointError` for what cannot be read back without a pickle."""
    optimizer, copies = _torch_optimizer(engine), fp32_master_params(engine)
    state = {
        "layout": layout(engine),
        "counters": {name: getattr(engine.deepspeed, name) for name in _COUNTERS},
        "last_lr": engine.last_lr,
        "schedule": engine.deepspeed.lr_scheduler.state_dict() if engine.deepspeed.lr_scheduler else {},
        "scaler": scaler(engine),
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "shadows": [tensor.detach() for tensor in copies],
        "moments": [dict(optimizer.state[one]) if one in optimizer.state else {} for one in optimizer_params(engine)],
        "fragments": fragments(engine),
        "buffers": dict(_buffers(engine.module)),
    }
    require_plain(state, "engine")
    return state


def restore(engine: TrainedEngine, state: Mapping[str, Any], saved_weights: Mapping[str, torch.Tensor]) -> None:
    """Put a snapshot and the weights back, for which `require_fit` was asked before."""
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            _held(parameter).copy_(saved_weights[name])
        _gather_persistent(engine)
        for name, buffer in _buffers(engine.module):
            buffer.copy_(state["buffers"][name])
        optimizer = _torch_optimizer(engine)
        for tensor, saved in zip(fp32_master_params(engine), state["shadows"], strict=True):
            tensor.copy_(saved)
        for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
            group.update(saved)
        for tensor, saved in zip(optimizer_params(engine), state["moments"], strict=True):
            scalars = _scalar_device(optimizer, tensor)
            _put_moments(optimizer.state, tensor, saved, scalars)
    for holder, numbers in zip(_scalers(engine), state["scaler"], strict=True):
        vars(holder).update(numbers)
    for name, value in state["counters"].items():
        setattr(engine.deepspeed, name, value)
    if engine.deepspeed.lr_scheduler:
        engine.deepspeed.lr_scheduler.load_state_dict(state["schedule"])
    engine.last_lr = state["last_lr"]


def require_fit(engine: TrainedEngine, state: Mapping[str, Any], saved_weights: Mapping[str, torch.Tensor]) -> None:
    """Raises `ResumeError` for a snapshot of another model, optimizer or precision."""
    here, there = layout(engine), state["layout"]
    words = [key for key in ("dtype", "optimizer") if here[key] != there.get(key)]
    different = [f"{key}: saved {there.get(key)}, now {here[key]}" for key in words]
    for key in ("parameters", "trained"):
        if here[key] != there[key]:
            odd = sorted(set(here[key]) ^ set(there[key])) or [n for n in here[key] if here[key][n] != there[key][n]]
            different.append(f"{key}: {', '.join(odd[:3])}{f' and {len(odd) - 3} more' if len(odd) > 3 else ''}")
    if odd := sorted(dict(_buffers(engine.module)).keys() ^ state["buffers"].keys()):
        different.append(f"buffers: {', '.join(odd[:3])}")
    if here["parameters"].keys() != saved_weights.keys():
        different.append("weights: the file does not hold the parameters of its layout")
    if different:
        raise ResumeError(f"the checkpoint does not fit this run's model and engine: {'; '.join(different)}")


def layout(engine: TrainedEngine) -> dict[str, Any]:
    """What must be equal for a snapshot to be put back as it is; all but stage and processes, to be put back at all."""
    deepspeed = engine.deepspeed
    return {
        "stage": int(deepspeed.zero_optimization_stage()),
        "processes": process_group.world_size(),
        "dtype": str(deepspeed.get_data_types()[0]).removeprefix("torch."),
        "optimizer": type(_torch_optimizer(engine)).__name__,
        "parameters": {name: list(_shape(one)) for name, one in engine.module.named_parameters()},
        "trained": [name for name, one in engine.module.named_parameters() if one.requires_grad],
        "groups": _groups(engine),
    }


def fragments(engine: TrainedEngine) -> list[list[tuple[str, int, int, int]]]:
    """For each optimizer tensor: parameter, first element in it, first element in the tensor, and how many of them."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    optimizer = engine.deepspeed.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO stage 3
        held = []
        for group in optimizer.fp16_groups:
            sizes = [parameter.ds_tensor.ds_numel for parameter in group]
            starts = [sum(sizes[:n]) for n in range(len(sizes))]
            rank = [process_group.rank() * size for size in sizes]
            held.append([(names[id(p)], *told) for p, *told in zip(group, rank, starts, sizes, strict=True)])
        return held
    groups = next((vars(optimizer)[name] for name in _GROUPS if name in vars(optimizer)), None)
    if groups is None:  # ZeRO stage 0 in fp32: the parameters themselves
        return [[(names[id(parameter)], 0, 0, parameter.numel())] for parameter in _held_by(optimizer)]
    if hasattr(
        optimizer, "fp32_groups_flat"
    ):  # stage 0 below fp32 with DeepSpeed's fused Adam: one copy for each group
        ends = [list(accumulate(parameter.numel() for parameter in group)) for group in groups]
        return [
            [(names[id(p)], 0, end - p.numel(), p.numel()) for p, end in zip(group, told, strict=True)]
            for group, told in zip(groups, ends, strict=True)
        ]
    if not hasattr(groups[0][0], "_hp_mapping"):  # stage 0 below fp32: one copy for each
        return [[(names[id(parameter)], 0, 0, parameter.numel())] for parameter in chain.from_iterable(groups)]
    held = []
    for group in groups:
        mapped = [(names[id(parameter)], parameter._hp_mapping) for parameter in group]
        held.append(
            [
                (name, part.lp_fragment_address.start, part.hp_fragment_address.start, part.hp_fragment_address.numel)
                for name, part in mapped
                if part is not None
            ]
        )
    return held


def require_plain(value: Any, path: str) -> None:
    """Raises `CheckpointError` for anything but tensors, numbers, strings, None, and lists and mappings of them."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            require_plain(key, f"a key of {path}")
            require_plain(one, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for n, one in enumerate(value):
            require_plain(one, f"{path}[{n}]")
    elif not isinstance(value, (torch.Tensor, int, float, str, bytes, type(None))):
        told = f"{path} is a {type(value).__name__}, which only a pickle could hold"
        raise CheckpointError(f"{told}; state_dict may return tensors, numbers, strings, lists and mappings of them")


def fp32_master_params(engine: TrainedEngine) -> list[torch.Tensor]:
    """The fp32 tensors that are stepped in place of the parameters; none at ZeRO stage 0 in fp32."""
    optimizer = engine.deepspeed.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return []
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3 lends them to the optimizer during its step only
        return list(optimizer.fp32_partitioned_groups_flat)
    return _held_by(optimizer.optimizer)


def optimizer_params(engine: TrainedEngine) -> list[torch.Tensor]:
    """The tensors that the optimizer steps, in the order of `fragments`."""
    return fp32_master_params(engine) or _held_by(_torch_optimizer(engine))


def scaler(engine: TrainedEngine) -> list[dict[str, int | float]]:
    """The loss scale of fp16, and what decides about the next one."""
    told = [{name: vars(one).get(name) for name in _SCALER} for one in _scalers(engine)]
    return [{name: value for name, value in one.items() if isinstance(value, int | float)} for one in told]


def _torch_optimizer(engine: TrainedEngine) -> torch.optim.Optimizer:
    """What DeepSpeed's own optimizer wraps, or the optimizer itself."""
    optimizer = engine.deepspeed.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _groups(engine: TrainedEngine) -> list[list[str]]:
    """The trained parameters of each of the optimizer's groups."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    optimizer = engine.deepspeed.optimizer
    held = next((vars(optimizer)[name] for name in _GROUPS if name in vars(optimizer)), None)
    if held is None:
        held = [group["params"] for group in optimizer.param_groups]
    sources = list(getattr(optimizer, "sub_group_to_group_id", {}).values()) or range(len(held))  # stage 3 parts groups
    told: list[list[str]] = [[] for _ in _torch_optimizer(engine).param_groups]
    for source, group in zip(sources, held, strict=True):
        told[source] += [names[id(parameter)] for parameter in group]
    return told


def _held_by(optimizer: Any) -> list[torch.Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def _held(parameter: Any) -> torch.Tensor:
    tensor = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter
    return tensor.detach()  # type: ignore[no-any-return]


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)  # type: ignore[no-any-return]


def _buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Those a state dict holds; the others are functions of the model's config."""
    wanted = module.state_dict(keep_vars=True).keys()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in wanted)


def _gather_persistent(engine: TrainedEngine) -> None:
    """At stage 3 small parameters stay whole on every process; make them follow their parts."""
    whole = getattr(engine.deepspeed.optimizer, "persistent_parameters", [])
    if whole:
        whole[0].partition(whole)
        whole[0].all_gather(whole)


def _scalers(engine: TrainedEngine) -> list[Any]:
    """What keeps the loss scale of fp16: the optimizer itself, or an object that it has."""
    optimizer = engine.deepspeed.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return []
    held = [vars(optimizer).get(name) for name in ("loss_scaler", "loss_scale_config")]
    return [optimizer, *(one for one in held if hasattr(one, "__dict__"))]


def _scalar_device(optimizer: torch.optim.Optimizer, tensor: torch.Tensor) -> torch.device:
    """Where torch keeps the step count of ``tensor``: beside it for its fused and capturable forms, else on the CPU."""
    flat = optimizer.param_groups[0]
    return tensor.device if flat.get("fused") or flat.get("capturable") else torch.device("cpu")


def _put_moments(states: Any, tensor: torch.Tensor, saved: Mapping[str, Any], scalars: torch.device) -> None:
    if not saved:
        states.pop(tensor, None)
        return
    there = states[tensor]
    for key in set(there) - set(saved):
        del there[key]
    for key, value in saved.items():
        if not isinstance(value, torch.Tensor):
            there[key] = value
        elif isinstance(held := there.get(key), torch.Tensor) and held.shape == value.shape:
            held.copy_(value)  # DeepSpeed may hold views of it
        else:
            there[key] = value.to(scalars if value.numel() == 1 and key == "step" else tensor.device, copy=True)
