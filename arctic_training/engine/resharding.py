"""Loads the snapshots of another number of ranks or another ZeRO stage into an engine.

The ``fragments`` of a snapshot say which elements of which parameter each optimizer tensor holds, so any element can be
found in the snapshots of all ranks, whatever their layout. Snapshots stay on disk; one optimizer tensor or parameter of
this engine is in memory at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from arctic_training.distributed import process_group
from arctic_training.engine import deepspeed_internals as internals
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.snapshot import fragments, layout, restore
from arctic_training.errors.types import CheckpointError, ResumeError

Weights = Mapping[str, torch.Tensor]


class SavedRank(NamedTuple):
    """What one rank saved of an engine."""

    state: Mapping[str, Any]
    """Its `snapshot`."""
    weights: Weights
    """Its `weights`: at stage 3 flat shards, else full parameters."""


class Fragment(NamedTuple):
    """Consecutive elements of a parameter in a saved optimizer tensor, both taken as flat."""

    start: int
    """The first element in the parameter."""
    size: int
    """Number of elements."""
    saved: SavedRank
    tensor: int
    """The index of the optimizer tensor."""
    offset: int
    """The first element in the optimizer tensor."""


class ShardedState:
    """The state of an engine that all ranks saved, addressed by parameter and element."""

    def __init__(self, ranks: Sequence[SavedRank]) -> None:
        self.ranks, self.layout = ranks, ranks[0].state["layout"]
        self.fragments: dict[str, list[Fragment]] = {name: [] for group in self.layout["groups"] for name in group}
        for saved in ranks if self.layout["stage"] else ranks[:1]:  # at stage 0 every rank has everything
            for tensor, held in enumerate(saved.state["fragments"]):
                for name, start, offset, size in held:
                    size = min(size, self.size(name) - start)  # the last shard at stage 3 is padded
                    if size > 0:
                        self.fragments[name].append(Fragment(start, size, saved, tensor, offset))

    def size(self, name: str) -> int:
        """Returns the number of elements of a parameter."""
        return math.prod(self.layout["parameters"][name])

    def missing(self, name: str) -> int:
        """Returns how many elements of a trained parameter no rank saved."""
        covered = 0
        for fragment in sorted(self.fragments[name], key=lambda fragment: fragment.start):
            if fragment.start <= covered:
                covered = max(covered, fragment.start + fragment.size)
        return self.size(name) - covered

    def optimizer_state(self, fragment: Fragment) -> Mapping[str, Any]:
        """Returns the optimizer's state of the fragment's tensor, such as ``exp_avg`` and ``step``."""
        state: Mapping[str, Any] = fragment.saved.state["moments"][fragment.tensor]
        return state

    def elements(self, fragment: Fragment, key: str | None = None) -> torch.Tensor:
        """Returns the fragment's elements ([size]), or with ``key`` what the optimizer keeps for each of them."""
        state = fragment.saved.state
        if key is not None:
            tensor = self.optimizer_state(fragment)[key]
        elif state["shadows"]:
            tensor = state["shadows"][fragment.tensor]
        else:  # stage 0 in fp32: the parameter itself is stepped
            ((name, *_),) = state["fragments"][fragment.tensor]
            tensor = fragment.saved.weights[name]
        return tensor.flatten()[fragment.offset : fragment.offset + fragment.size]  # type: ignore[no-any-return]

    def length(self, fragment: Fragment) -> int:
        """Returns the number of elements of the fragment's optimizer tensor."""
        masters = fragment.saved.state["shadows"]
        return int(masters[fragment.tensor].numel()) if masters else fragment.size

    def copy_weight(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fills ``out`` ([elements]) with the elements of a parameter from ``start`` on."""
        if self.layout["stage"] != 3:
            _copy_overlap(self.ranks[0].weights[name].flatten(), 0, out, start)
            return
        for rank, saved in enumerate(self.ranks):
            shard = saved.weights[name].flatten()
            _copy_overlap(shard[: max(0, self.size(name) - rank * len(shard))], rank * len(shard), out, start)


def load_resharded(engine: TrainedEngine, ranks: Sequence[SavedRank]) -> None:
    """Loads what all ranks saved of an engine into this one; `require_reshardable` must have passed."""
    sharded, rank = ShardedState(ranks), process_group.rank()
    own = ranks[rank if rank < len(ranks) else 0].state
    groups = [_find_group(sharded.layout["groups"], names) for names in layout(engine)["groups"]]
    saved_scaler = {key: value for numbers in own["scaler"] for key, value in numbers.items()}
    scaler = internals.scaler_state(engine.deepspeed.optimizer)
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
    sharded = ShardedState(ranks)
    if any(saved.state["layout"] != sharded.layout for saved in ranks):
        raise CheckpointError("the ranks of the checkpoint did not save one engine")
    if len(ranks) != sharded.layout["processes"]:
        raise CheckpointError(f"the checkpoint has the state of {len(ranks)} ranks of {sharded.layout['processes']}")
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
    for names in groups:
        _find_group(sharded.layout["groups"], names)


def _find_group(groups: Sequence[Sequence[str]], names: Sequence[str]) -> int:
    for n, held in enumerate(groups):
        if set(held) == set(names):
            return n
    raise ResumeError(f"the checkpoint's optimizer has no group of just the parameters {', '.join(names[:3])}, ...")


class _Weights(Mapping[str, torch.Tensor]):
    """What this rank holds of each parameter of an engine, built when it is read."""

    def __init__(self, engine: TrainedEngine, sharded: ShardedState) -> None:
        self.parameters, self.sharded = dict(engine.module.named_parameters()), sharded

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, name: str) -> torch.Tensor:
        parameter = self.parameters[name]
        local = internals.local_tensor(parameter)
        weight = torch.zeros(local.numel(), dtype=local.dtype)
        start = process_group.rank() * local.numel() if internals.is_partitioned_param(parameter) else 0
        self.sharded.copy_weight(name, start, weight)
        return weight.view(local.shape)


def _iter_master_params(engine: TrainedEngine, sharded: ShardedState) -> Iterator[torch.Tensor]:
    """Yields the values of each of this rank's fp32 master parameters."""
    masters = internals.fp32_master_params(engine.deepspeed.optimizer)
    for tensor, held in zip(masters, fragments(engine) if masters else [], strict=True):
        values = torch.zeros(tensor.numel(), dtype=tensor.dtype)
        for name, start, offset, size in held:
            for fragment in sharded.fragments[name]:
                _copy_overlap(sharded.elements(fragment), fragment.start, values[offset : offset + size], start)
        yield values.view(tensor.shape)


def _iter_optimizer_states(engine: TrainedEngine, sharded: ShardedState) -> Iterator[dict[str, Any]]:
    """Yields the state of each of this rank's optimizer tensors; of a count, such as ``step``, the highest."""
    elementwise = _elementwise_keys(sharded)
    for tensor, held in zip(internals.optimizer_params(engine.deepspeed.optimizer), fragments(engine), strict=True):
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
                        _copy_overlap(elements, fragment.start, out[offset : offset + size], start)
        yield state


def _elementwise_keys(sharded: ShardedState) -> set[str]:
    """Returns the keys of what the optimizer keeps for each element; the others are one number for a tensor."""
    fragments = (fragment for held in sharded.fragments.values() for fragment in held)
    items = (item for fragment in fragments for item in sharded.optimizer_state(fragment).items())
    return {key for key, value in items if isinstance(value, torch.Tensor) and value.dim()}


def _copy_overlap(source: torch.Tensor, first: int, out: torch.Tensor, start: int) -> None:
    """Copies the elements of a parameter that ``source``, from its element ``first``, and ``out``, from ``start``,
    have in common."""
    begin, end = max(first, start), min(first + len(source), start + len(out))
    if begin < end:
        out[begin - start : end - start] = source[begin - first : end - first]
