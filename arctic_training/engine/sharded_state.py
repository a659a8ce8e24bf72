"""The state of an engine in the snapshots of the ranks that saved it, addressed by parameter and element.

The ``fragments`` of a snapshot say which elements of which parameter each optimizer tensor holds, so any element can be
found in the snapshots of all ranks, whatever their layout.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

Weights = Mapping[str, torch.Tensor]
Division = Mapping[str, Sequence[int]]
"""By the name of a parameter, the dimension that tensor parallelism divides, and the number of parts."""


class SavedRank(NamedTuple):
    """Part of an engine's state that one rank saved."""

    state: Mapping[str, Any]
    """Its `snapshot`."""
    weights: Weights
    """Its `weights`: at stage 3 flat shards, else full parameters."""


class Fragment(NamedTuple):
    """Consecutive elements of a parameter in a saved optimizer tensor, both taken as flat."""

    name: str
    """The parameter."""
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
    """The state of an engine that ranks saved, addressed by parameter and element.

    They are all ranks, or those of one part of a model that tensor parallelism divided; see `model_parts`.
    """

    def __init__(self, ranks: Sequence[SavedRank]) -> None:
        self.ranks, self.layout = ranks, ranks[0].state["layout"]
        self.fragments: dict[str, list[Fragment]] = {name: [] for group in self.layout["groups"] for name in group}
        for saved in ranks if self.layout["stage"] else ranks[:1]:  # at stage 0 every rank has everything
            for tensor, held in enumerate(saved.state["fragments"]):
                for name, start, offset, size in held:
                    size = min(size, self.size(name) - start)  # the last shard at stage 3 is padded
                    if size > 0:
                        self.fragments[name].append(Fragment(name, start, size, saved, tensor, offset))

    @property
    def divided(self) -> Division:
        """Dimension of each parameter that tensor parallelism divided, and among how many."""
        divided: Division = self.layout.get("divided", {})
        return divided

    def shape(self, name: str) -> list[int]:
        """Returns the shape of a parameter, or of the part of it."""
        dim, count = self.divided.get(name, (None, 1))
        return [size // count if n == dim else size for n, size in enumerate(self.layout["parameters"][name])]

    def size(self, name: str) -> int:
        """Returns the number of elements of a parameter, or of the part of it."""
        return math.prod(self.shape(name))

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

    def all_elements(self, name: str, key: str | None = None) -> torch.Tensor:
        """Returns the `elements` of all fragments of a parameter, of its `shape`."""
        pieces = [(self.elements(fragment, key), fragment.start) for fragment in self.fragments[name]]
        out = torch.zeros(self.size(name), dtype=pieces[0][0].dtype)
        for piece, start in pieces:
            copy_overlap(piece, start, out, 0)
        return out.view(self.shape(name))

    def weight(self, name: str) -> torch.Tensor:
        """Returns a parameter, of its `shape`."""
        first = self.ranks[0].weights[name]
        if list(first.shape) == self.shape(name):
            return first
        out = torch.zeros(self.size(name), dtype=first.dtype)
        self.copy_weight(name, 0, out)
        return out.view(self.shape(name))

    def length(self, fragment: Fragment) -> int:
        """Returns the number of elements of the fragment's optimizer tensor."""
        masters = fragment.saved.state["shadows"]
        return int(masters[fragment.tensor].numel()) if masters else fragment.size

    def copy_weight(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fills ``out`` ([elements]) with the elements of a parameter from ``start`` on."""
        if self.layout["stage"] != 3:
            copy_overlap(self.ranks[0].weights[name].flatten(), 0, out, start)
            return
        for rank, saved in enumerate(self.ranks):
            shard = saved.weights[name].flatten()
            copy_overlap(shard[: max(0, self.size(name) - rank * len(shard))], rank * len(shard), out, start)


def num_parts(state: Mapping[str, Any]) -> int:
    """Returns into how many parts tensor parallelism divided the engine of a snapshot; 1 for one that was whole."""
    return next((int(count) for _, count in state["layout"].get("divided", {}).values()), 1)


def model_parts(ranks: Sequence[SavedRank]) -> list[ShardedState]:
    """Returns the state of each part of the engine that all ``ranks`` saved; see `num_parts`."""
    count = num_parts(ranks[0].state)
    return [ShardedState(ranks[n::count]) for n in range(count)]


class JoinedState(ShardedState):
    """The state of an engine that tensor parallelism divided otherwise than now: its parts are joined, and cut anew."""

    def __init__(self, parts: Sequence[ShardedState], divided: Division, index: int) -> None:
        """``divided`` says how parameters are divided now, and ``index`` is that of the part to be read."""
        self.parts, self.ranks, self.layout = parts, parts[0].ranks, parts[0].layout
        self._divided, self._index = divided, index
        firsts = {name: held[0] for name, held in parts[0].fragments.items() if held}
        self.fragments = {name: [one._replace(start=0, size=self.size(name))] for name, one in firsts.items()}

    @property
    def divided(self) -> Division:
        return self._divided

    def elements(self, fragment: Fragment, key: str | None = None) -> torch.Tensor:
        name = fragment.name
        return self._own_part(name, [part.all_elements(name, key) for part in self.parts]).flatten()

    def copy_weight(self, name: str, start: int, out: torch.Tensor) -> None:
        copy_overlap(self._own_part(name, [part.weight(name) for part in self.parts]).flatten(), 0, out, start)

    def _own_part(self, name: str, parts: list[torch.Tensor]) -> torch.Tensor:
        saved = self.parts[0].divided.get(name)
        full = torch.cat(parts, saved[0]) if saved else parts[0]
        if name not in self._divided:
            return full
        dim, count = self._divided[name]
        length = full.shape[dim] // count
        return full.narrow(dim, self._index % count * length, length)


def copy_overlap(source: torch.Tensor, first: int, out: torch.Tensor, start: int) -> None:
    """Copies the elements of a parameter that ``source``, from its element ``first``, and ``out``, from ``start``,
    have in common."""
    begin, end = max(first, start), min(first + len(source), start + len(out))
    if begin < end:
        out[begin - start : end - start] = source[begin - first : end - first]
