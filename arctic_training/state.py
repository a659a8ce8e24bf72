"""What a run must remember to go on exactly as if it had never stopped."""

import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from arctic_training.distributed import process_group
from arctic_training.errors.types import ResumeError


@runtime_checkable
class Stateful(Protocol):
    """Tensors, numbers, strings, and lists and mappings of them: what can be read back without a pickle."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


@runtime_checkable
class Reshardable(Stateful, Protocol):
    """A part of which each process holds a share, and which other processes can go on with."""

    def load_sharded_state_dict(self, shares: Sequence[Mapping[str, Any]], /) -> None:
        """Go on from the shares of every process that saved, by rank: another number of them, or another ZeRO stage."""


@dataclass
class Progress:
    """Where the run stands. Only the loop writes it."""

    epoch: int = 0
    """Completed epochs."""
    sample_index: int = 0
    """Index of the next row in the order of the current epoch, over all data ranks, however it is cut."""
    step: int = 0
    """Optimizer steps taken."""
    num_target_tokens: int = 0
    """Labels trained on, over all data ranks."""

    @property
    def update(self) -> int:
        """``step``, under its former name."""
        return self.step

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        for field in fields(self):
            setattr(self, field.name, int(state[field.name]))


class Rng:
    """The process's own random generators. Data order never draws from them."""

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state()
        state: dict[str, Any] = {
            "python": {"version": version, "internal": list(internal), "gauss": gauss},
            "numpy": {
                "name": str(name),
                "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
                "position": int(position),
                "has_gauss": int(has_gauss),
                "cached": float(cached),
            },
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        python, numpy = state["python"], state["numpy"]
        random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))
        keys = numpy["keys"].numpy().astype(np.uint32)
        np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])

    def load_sharded_state_dict(self, shares: Sequence[Mapping[str, Any]], /) -> None:
        """A process that is new draws numbers of its own, a function of the first one's and of its rank."""
        if (rank := process_group.rank()) < len(shares):
            self.load_state_dict(shares[rank])
            return
        drawn = zlib.crc32(shares[0]["torch"].numpy().tobytes())
        first, second, third = np.random.SeedSequence([drawn, rank]).generate_state(3).tolist()
        random.seed(first)
        np.random.seed(second)
        torch.manual_seed(third)


@contextmanager
def eval_mode(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """The modules in evaluation mode; after it each part of them is in the mode that it was in."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def isolated_eval(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """What is done inside leaves neither the modules' mode nor the random generators changed, and no gradient."""
    rng = Rng()
    before = rng.state_dict()
    try:
        with eval_mode(modules), torch.no_grad():
            yield
    finally:
        rng.load_state_dict(before)


class RunState(dict[str, Stateful]):
    """The parts of a run that are saved, by name. Loading is strict, both ways, but as `allow_missing` says."""

    _spared: tuple[str, ...] = ()

    def add(self, parts: Mapping[str, Stateful]) -> None:
        """Adds ``parts``. Raises ValueError for one whose name is taken: the other would not be remembered."""
        if twice := sorted(self.keys() & parts.keys()):
            raise ValueError(f"the state of the run has a part {twice[0]!r} already; give it another name")
        self.update(parts)

    def allow_missing(self, beginning: str) -> "RunState":
        """The same parts, of which those whose names have this ``beginning`` may be unknown or missing when loaded."""
        made = RunState(self)
        made._spared = (beginning,)
        return made

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.items()}

    def require_fit(self, state: Mapping[str, Any]) -> None:
        """Raises `ResumeError` when a part of ``state`` is unknown or missing."""
        odd = {name for name in state.keys() ^ self.keys() if not name.startswith(self._spared)}
        unknown, missing = sorted(odd & state.keys()), sorted(odd & self.keys())
        if unknown or missing:
            told = [f"it holds {', '.join(unknown)}, which the run lacks"] * bool(unknown)
            told += [f"it lacks {', '.join(missing)}, which the run has"] * bool(missing)
            raise ResumeError(f"the checkpoint does not fit this run: {'; '.join(told)}")

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Raises `ResumeError` when a part is unknown or missing; then nothing has been loaded."""
        self.require_fit(state)
        for name, part in self.items():
            if name in state:
                part.load_state_dict(state[name])

    def load_sharded_state_dict(self, shares: Sequence[Mapping[str, Any]], /) -> None:
        """`load_state_dict` from what each process of another layout saved.

        A part that is not `Reshardable` takes the share of its own rank, or of the first where the process is new.
        """
        rank = process_group.rank()
        own = shares[rank if rank < len(shares) else 0]
        self.require_fit(own)
        for name, part in self.items():
            if name not in own:
                continue
            if isinstance(part, Reshardable):
                part.load_sharded_state_dict([share[name] for share in shares])
            else:
                part.load_state_dict(own[name])
