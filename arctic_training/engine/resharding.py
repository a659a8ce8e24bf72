"""Snapshots of another number of processes or another ZeRO stage, cut anew for an engine.

``fragments`` say which elements of which parameter each saved tensor holds, so that any element can be found in the
shares of all processes, whatever their layout. Shares stay on disk; what one optimizer tensor or one parameter of this
engine holds is in memory at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from arctic_training.distributed import process_group
from arctic_training.engine.engine import TrainedEngine
from arctic_training.engine.snapshot import fp32_master_params, fragments, layout, optimizer_params, restore, scaler
from arctic_training.errors.types import CheckpointError, ResumeError

Weights = Mapping[str, torch.Tensor]


class Share(NamedTuple):
    """What one process saved of an engine."""

    state: Mapping[str, Any]
    weights: Weights


class Fragment(NamedTuple):
    """A run of elements of a parameter, in a saved optimizer tensor."""

    start: int
    """The first of them in the parameter."""
    size: int
    share: Share
    tensor: int
    """Which optimizer tensor of the share."""
    at: int
    """The first of them in the tensor."""


class ShardedState:
    """All shares of an engine's state together."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares, self.layout = shares, shares[0].state["layout"]
        self.pieces: dict[str, list[Fragment]] = {name: [] for group in self.layout["groups"] for name in group}
        for share in shares if self.layout["stage"] else shares[:1]:  # at stage 0 every process has everything
            for tensor, held in enumerate(share.state["fragments"]):
                for name, start, at, size in held:
                    size = min(size, self.size(name) - start)  # the last part at stage 3 is filled up
                    if size > 0:
                        self.pieces[name].append(Fragment(start, size, share, tensor, at))

    def size(self, name: str) -> int:
        return math.prod(self.layout["parameters"][name])

    def missing(self, name: str) -> int:
        """How many elements of a trained parameter no share has."""
        covered = 0
        for piece in sorted(self.pieces[name], key=lambda piece: piece.start):
            if piece.start <= covered:
                covered = max(covered, piece.start + piece.size)
        return self.size(name) - covered

    def moments(self, piece: Fragment) -> Mapping[str, Any]:
        moments: Mapping[str, Any] = piece.share.state["moments"][piece.tensor]
        return moments

    def tensor(self, piece: Fragment, key: str | None = None) -> torch.Tensor:
        """The flat optimizer tensor that ``piece`` is of, or what the optimizer keeps for each of its elements."""
        if key is not None:
            return self.moments(piece)[key].flatten()  # type: ignore[no-any-return]
        if fp32_master_params := piece.share.state["shadows"]:
            return fp32_master_params[piece.tensor].flatten()  # type: ignore[no-any-return]
        ((name, *_),) = piece.share.state["fragments"][piece.tensor]
        return piece.share.weights[name].flatten()  # stage 0 in fp32: the parameter itself is stepped

    def length(self, piece: Fragment) -> int:
        """Elements of the optimizer tensor that ``piece`` is of."""
        fp32_master_params = piece.share.state["shadows"]
        return int(fp32_master_params[piece.tensor].numel()) if fp32_master_params else piece.size

    def weight(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fill the flat ``out`` with the elements of a parameter from ``start`` on."""
        if self.layout["stage"] != 3:
            _copy(self.shares[0].weights[name].flatten(), 0, out, start)
            return
        for rank, share in enumerate(self.shares):
            part = share.weights[name].flatten()
            _copy(part[: max(0, self.size(name) - rank * len(part))], rank * len(part), out, start)


def load_resharded(engine: TrainedEngine, shares: Sequence[Share]) -> None:
    """Put the shares of all that saved an engine into this one, for which `require_parts` was asked before."""
    whole, rank = ShardedState(shares), process_group.rank()
    mine = shares[rank if rank < len(shares) else 0].state
    groups = [_same_group(whole.layout["groups"], names) for names in layout(engine)["groups"]]
    numbers = {key: value for told in mine["scaler"] for key, value in told.items()}
    state = {
        **mine,
        "groups": [mine["groups"][group] for group in groups],
        "scaler": [{key: numbers.get(key, value) for key, value in told.items()} for told in scaler(engine)],
        "shadows": _shadows(engine, whole),
        "moments": _moments(engine, whole),
    }
    restore(engine, state, _Weights(engine, whole))


def require_parts(shares: Sequence[Share], groups: Sequence[Sequence[str]]) -> None:
    """Raises `ResumeError` for shares that cannot be cut anew for an optimizer of these ``groups`` of parameters."""
    whole = ShardedState(shares)
    if any(share.state["layout"] != whole.layout for share in shares):
        raise CheckpointError("the processes' shares of the checkpoint are not of one engine")
    if len(shares) != whole.layout["processes"]:
        raise CheckpointError(f"the checkpoint has {len(shares)} shares of {whole.layout['processes']}")
    for name in whole.pieces:
        if missing := whole.missing(name):
            raise CheckpointError(f"{missing} elements of {name} are in no share of the checkpoint")
        for piece in whole.pieces[name]:
            for key, value in whole.moments(piece).items():
                if isinstance(value, torch.Tensor) and value.numel() not in (1, whole.length(piece)):
                    told = f"{whole.layout['optimizer']} keeps {key} of {name} as a whole"
                    raise ResumeError(f"{told}: it goes on with the same processes and ZeRO stage only")
    for names in groups:
        _same_group(whole.layout["groups"], names)


def _same_group(groups: Sequence[Sequence[str]], names: Sequence[str]) -> int:
    for n, held in enumerate(groups):
        if set(held) == set(names):
            return n
    raise ResumeError(f"the checkpoint's optimizer has no group of just the parameters {', '.join(names[:3])}, ...")


class _Weights(Mapping[str, torch.Tensor]):
    """What each parameter of an engine holds on this process, made when it is asked for."""

    def __init__(self, engine: TrainedEngine, whole: ShardedState) -> None:
        self.named, self.whole = dict(engine.module.named_parameters()), whole

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)

    def __getitem__(self, name: str) -> torch.Tensor:
        parameter: Any = self.named[name]
        held = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter
        made = torch.zeros(held.numel(), dtype=held.dtype)
        start = process_group.rank() * held.numel() if hasattr(parameter, "ds_tensor") else 0
        self.whole.weight(name, start, made)
        return made.view(held.shape)


def _shadows(engine: TrainedEngine, whole: ShardedState) -> Iterator[torch.Tensor]:
    copies = fp32_master_params(engine)
    for tensor, held in zip(copies, fragments(engine) if copies else [], strict=True):
        made = torch.zeros(tensor.numel(), dtype=tensor.dtype)
        for name, start, at, size in held:
            for piece in whole.pieces[name]:
                _copy(_cut(whole.tensor(piece), piece), piece.start, made[at : at + size], start)
        yield made.view(tensor.shape)


def _moments(engine: TrainedEngine, whole: ShardedState) -> Iterator[dict[str, Any]]:
    """For each optimizer tensor here: elements from where they are, and of a count, such as ``step``, the highest."""
    elementwise = _elementwise(whole)
    for tensor, held in zip(optimizer_params(engine), fragments(engine), strict=True):
        made: dict[str, Any] = {}
        for name, start, at, size in held:
            for piece in whole.pieces[name]:
                if piece.start >= start + size or piece.start + piece.size <= start:
                    continue
                for key, value in whole.moments(piece).items():
                    if key not in elementwise:
                        made[key] = value if made.get(key) is None else max(made[key], value)
                    elif value is not None:
                        out = made.setdefault(key, torch.zeros(tensor.shape, dtype=value.dtype)).view(-1)
                        _copy(_cut(whole.tensor(piece, key), piece), piece.start, out[at : at + size], start)
        yield made


def _elementwise(whole: ShardedState) -> set[str]:
    """What the optimizer keeps for each element, by key; the rest are counts, of one number for a whole tensor."""
    every = (item for pieces in whole.pieces.values() for piece in pieces for item in whole.moments(piece).items())
    return {key for key, value in every if isinstance(value, torch.Tensor) and value.dim()}


def _cut(tensor: torch.Tensor, piece: Fragment) -> torch.Tensor:
    return tensor[piece.at : piece.at + piece.size]


def _copy(source: torch.Tensor, first: int, out: torch.Tensor, start: int) -> None:
    """What two runs of a parameter's elements have in common: ``source`` begins at ``first``, ``out`` at ``start``."""
    begin, end = max(first, start), min(first + len(source), start + len(out))
    if begin < end:
        out[begin - start : end - start] = source[begin - first : end - first]
