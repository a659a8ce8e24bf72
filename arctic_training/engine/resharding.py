"""Loads the snapshots of another number of ranks, another ZeRO stage or another mesh into an engine.

Snapshots stay on disk; one optimizer tensor or parameter of this engine is in memory at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.internals.optimizer import fp32_master_params, optimizer_params
from arctic_training.engine.internals.parameters import is_partitioned_param, local_tensor
from arctic_training.engine.internals.steps import scaler_state
from arctic_training.engine.sharded_state import JoinedState, SavedRank, ShardedState, copy_overlap, model_parts
from arctic_training.engine.snapshot import fragments, layout, restore
from arctic_training.errors.types import CheckpointError, ResumeError


def load_resharded(engine: TrainedEngine, ranks: Sequence[SavedRank]) -> None:
    """Loads what all ranks saved of an engine into this one; `require_reshardable` must have passed."""
    now, parts, rank = layout(engine), model_parts(ranks), process_group.rank()
    sharded = parts[rank % len(parts)]
    if sharded.divided != now["divided"]:
        sharded = JoinedState(parts, now["divided"], rank)
    own = ranks[rank if rank < len(ranks) else 0].state
    groups = [_find_group(sharded.layout["groups"], names) for names in now["groups"]]
    saved_scaler = {key: value for numbers in own["scaler"] for key, value in numbers.items()}
    scaler = scaler_state(engine.deepspeed.optimizer)
    state = {
        **own,
        "groups": [own["groups"][group] for group in groups],
        "scaler": [{key: saved_scaler.get(key, value) for key, value in numbers.items()} for numbers in scaler],
        "shadows": _iter_master_params(engine, sharded),
        "moments": _iter_optimizer_states(engine, sharded),
    }
    restore(engine, state, _Weights(engine, sharded))


def require_reshardable(ranks: Sequence[SavedRank], groups: Sequence[Sequence[str]]) -> None:
    """Checks that ``ranks`` can be loaded into an optimizer with these ``groups`` of parameter names.

    Raises `CheckpointError` for an incomplete checkpoint, and `ResumeError` for one that cannot be resharded.
    """
    saved_layout = ranks[0].state["layout"]
    if any(saved.state["layout"] != saved_layout for saved in ranks):
        raise CheckpointError("the ranks of the checkpoint did not save one engine")
    if len(ranks) != saved_layout["processes"]:
        raise CheckpointError(f"the checkpoint has the state of {len(ranks)} ranks of {saved_layout['processes']}")
    for part in model_parts(ranks):
        _require_whole(part)
    for names in groups:
        _find_group(saved_layout["groups"], names)


def _require_whole(sharded: ShardedState) -> None:
    """Raises `CheckpointError` for missing elements, `ResumeError` for state that cannot be resharded."""
    for name, held in sharded.fragments.items():
        if missing := sharded.missing(name):
            raise CheckpointError(f"{missing} elements of {name} are missing from the checkpoint")
        for fragment in held:
            for key, value in sharded.optimizer_state(fragment).items():
                if isinstance(value, torch.Tensor) and value.numel() not in (1, sharded.length(fragment)):
                    raise ResumeError(
                        f"{sharded.layout['optimizer']} keeps {key} of {name} in one piece: "
                        "it can only be resumed with the same processes and ZeRO stage"
                    )


def _find_group(groups: Sequence[Sequence[str]], names: Sequence[str]) -> int:
    for n, held in enumerate(groups):
        if set(held) == set(names):
            return n
    raise ResumeError(f"the checkpoint's optimizer has no group of just the parameters {', '.join(names[:3])}, ...")


class _Weights(Mapping[str, torch.Tensor]):
    """Shards that this rank holds of each parameter of an engine that was saved, built when they are read."""

    def __init__(self, engine: TrainedEngine, sharded: ShardedState) -> None:
        saved, parameters = set(sharded.ranks[0].weights), engine.module.named_parameters()
        self.parameters, self.sharded = {name: one for name, one in parameters if name in saved}, sharded

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, name: str) -> torch.Tensor:
        parameter = self.parameters[name]
        local = local_tensor(parameter)
        weight = torch.zeros(local.numel(), dtype=local.dtype)
        start = process_group.rank() * local.numel() if is_partitioned_param(parameter) else 0
        self.sharded.copy_weight(name, start, weight)
        return weight.view(local.shape)


def _iter_master_params(engine: TrainedEngine, sharded: ShardedState) -> Iterator[torch.Tensor]:
    """Yields the values of each of this rank's fp32 master parameters."""
    masters = fp32_master_params(engine.deepspeed.optimizer)
    for tensor, held in zip(masters, fragments(engine) if masters else [], strict=True):
        values = torch.zeros(tensor.numel(), dtype=tensor.dtype)
        for name, start, offset, size in held:
            for fragment in sharded.fragments[name]:
                copy_overlap(sharded.elements(fragment), fragment.start, values[offset : offset + size], start)
        yield values.view(tensor.shape)


def _iter_optimizer_states(engine: TrainedEngine, sharded: ShardedState) -> Iterator[dict[str, Any]]:
    """Yields the state of each of this rank's optimizer tensors; of a count, such as ``step``, the highest."""
    elementwise = _elementwise_keys(sharded)
    for tensor, held in zip(optimizer_params(engine.deepspeed.optimizer), fragments(engine), strict=True):
        state: dict[str, Any] = {}
        for name, start, offset, size in held:
            for fragment in sharded.fragments[name]:
                if fragment.start >= start + size or fragment.start + fragment.size <= start:
                    continue
                for key, value in sharded.optimizer_state(fragment).items():
                    if key not in elementwise:
                        state[key] = value if state.get(key) is None else max(state[key], value)
                    elif value is not None:
                        out = state.setdefault(key, torch.zeros(tensor.shape, dtype=value.dtype)).view(-1)
                        elements = sharded.elements(fragment, key)
                        copy_overlap(elements, fragment.start, out[offset : offset + size], start)
        yield state


def _elementwise_keys(sharded: ShardedState) -> set[str]:
    """Returns the keys of what the optimizer keeps for each element; the others are one number for a tensor."""
    fragments = (fragment for held in sharded.fragments.values() for fragment in held)
    items = (item for fragment in fragments for item in sharded.optimizer_state(fragment).items())
    return {key for key, value in items if isinstance(value, torch.Tensor) and value.dim()}
