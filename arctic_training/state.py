"""The state of a run: everything that a checkpoint needs, so that a resumed run equals one that never stopped."""

import random
import re
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
    """A part of a run with state of its own."""

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors, numbers, strings, and lists and mappings of them: what is read back without a pickle."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restores what `state_dict` returned."""


@runtime_checkable
class Reshardable(Stateful, Protocol):
    """State sharded over ranks that can be loaded on a different number of ranks."""

    def load_sharded_state_dict(self, states: Sequence[Mapping[str, Any]], /) -> None:
        """Restores the state from the state dicts of all ranks that saved, in rank order.

        Called when their number or the ZeRO stage differs from this run's.
        """


@dataclass
class Progress:
    """The position of the run in steps and data. Only the training loop writes it."""

    epoch: int = 0
    """Completed epochs."""
    sample_index: int = 0
    """Index of the next row in the order of the current epoch, over all data ranks, however it is cut."""
    step: int = 0
    """Optimizer steps taken."""
    num_target_tokens: int = 0
    """Labels trained on, over all data ranks."""
    num_tokens: int = 0
    """Tokens trained on, without padding, over all data ranks; those of a checkpoint that does not count them are 0."""

    @property
    def update(self) -> int:
        """The former name of ``step``."""
        return self.step

    def state_dict(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restores the fields."""
        for field in fields(self):
            setattr(self, field.name, int({"num_tokens": 0, **state}[field.name]))


def seed(value: int) -> None:
    """Seeds the generators of Python, numpy and torch."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


class Rng:
    """The random generators of the process: Python's, NumPy's, torch's and the GPU's. Data order never uses them."""

    def state_dict(self) -> dict[str, Any]:
        """Returns ``python`` and ``numpy`` (mappings), ``torch`` and, with a GPU, ``cuda`` (uint8 tensors [bytes])."""
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
        """Restores the generators."""
        python, numpy = state["python"], state["numpy"]
        random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))
        keys = numpy["keys"].numpy().astype(np.uint32)
        np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])

    def load_sharded_state_dict(self, states: Sequence[Mapping[str, Any]], /) -> None:
        """Restores this rank's generators; a rank that did not save seeds its own from those of rank 0 and its rank."""
        if (rank := process_group.rank()) < len(states):
            self.load_state_dict(states[rank])
            return
        base = zlib.crc32(states[0]["torch"].numpy().tobytes())
        first, second, third = np.random.SeedSequence([base, rank]).generate_state(3).tolist()
        random.seed(first)
        np.random.seed(second)
        torch.manual_seed(third)


@contextmanager
def eval_mode(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Sets the modules to evaluation mode inside the block, and restores the mode of each submodule."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restores the random generators of the process after the block."""
    rng = Rng()
    before = rng.state_dict()
    try:
        yield
    finally:
        rng.load_state_dict(before)


@contextmanager
def isolated_eval(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Evaluates without a trace: restores the modules' mode and the random generators, and records no gradients."""
    with isolated_rng(), eval_mode(modules), torch.no_grad():
        yield


def needs_numbers(error: BaseException) -> bool:
    """Returns whether ``error`` says that an operation has no result on the meta device, whose tensors are shapes."""
    return isinstance(error, NotImplementedError) or re.search(r"\bmeta\b", str(error), re.IGNORECASE) is not None


class RunState(dict[str, Stateful]):
    """The parts of a run that are saved, by name, such as ``progress``, ``rng``, ``data`` and ``callback.<name>``.

    Loading is strict: unknown and missing parts are errors, except as `allow_missing` says.
    """

    _optional_prefixes: tuple[str, ...] = ()

    def add(self, parts: Mapping[str, Stateful]) -> None:
        """Adds ``parts``. Raises ValueError when a name is taken: the other part would not be saved."""
        if taken := sorted(self.keys() & parts.keys()):
            raise ValueError(f"the state of the run already has a part {taken[0]!r}; use another name")
        self.update(parts)

    def allow_missing(self, prefix: str) -> "RunState":
        """Returns a copy that ignores missing or unexpected keys starting with ``prefix``."""
        copy = RunState(self)
        copy._optional_prefixes = (prefix,)
        return copy

    def state_dict(self) -> dict[str, Any]:
        """Returns the state dict of each part, by name."""
        return {name: part.state_dict() for name, part in self.items()}

    def require_fit(self, state: Mapping[str, Any]) -> None:
        """Raises `ResumeError` when a part of ``state`` is unknown or missing."""
        odd = {name for name in state.keys() ^ self.keys() if not name.startswith(self._optional_prefixes)}
        unknown, missing = sorted(odd & state.keys()), sorted(odd & self.keys())
        causes = [f"it holds {', '.join(unknown)}, which the run lacks"] if unknown else []
        causes += [f"it lacks {', '.join(missing)}, which the run has"] if missing else []
        if causes:
            raise ResumeError(f"the checkpoint does not fit this run: {'; '.join(causes)}")

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Loads every part. Raises `ResumeError`, before any is loaded, when a part is unknown or missing."""
        self.require_fit(state)
        for name, part in self.items():
            if name in state:
                part.load_state_dict(state[name])

    def load_sharded_state_dict(self, states: Sequence[Mapping[str, Any]], /) -> None:
        """Loads every part from the state dicts of all ranks that saved, in rank order.

        A part that is not `Reshardable` takes the state of its own rank, or of rank 0 where its rank did not save.
        Raises `ResumeError` as `load_state_dict` does.
        """
        rank = process_group.rank()
        own = states[rank if rank < len(states) else 0]
        self.require_fit(own)
        for name, part in self.items():
            if name not in own:
                continue
            if isinstance(part, Reshardable):
                part.load_sharded_state_dict([state[name] for state in states])
            else:
                part.load_state_dict(own[name])
