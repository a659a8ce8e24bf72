"""Metrics of a run: accumulated on the device, and reduced over the ranks only when they are computed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from arctic_training.distributed import collectives, process_group
from arctic_training.registry import numbered

Number = torch.Tensor | float | int
Reduce = Callable[[torch.Tensor], torch.Tensor]


def merge_metrics(values: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Returns the union; a name of ``more`` that ``values`` has gets a number, so that neither replaces the other."""
    return {**values, **dict(zip(numbered(more, taken=values), more.values(), strict=True))}


def parent_set(name: str) -> str:
    """Returns the evaluation set of which ``name`` is a part: ``eval`` of ``eval/source``; empty for no part."""
    return name.rpartition("/")[0]


def reported_sets(names: Iterable[str]) -> list[str]:
    """Returns the evaluation sets that metrics are reported of: those of ``names``, and before them what they are parts
    of."""
    names = list(names)
    return list(dict.fromkeys([*filter(None, map(parent_set, names)), *names]))


def column_variances(rows: torch.Tensor) -> torch.Tensor:
    """Returns the variance of each column of ``rows``, floating ``[n, columns]``, over those of all ranks: that of the
    population, float64 ``[columns]``. All ranks call it together, with at least one row in all."""
    values = rows.double()
    sums = torch.stack([power.sum(0) for power in (torch.ones_like(values), values, values.square())])
    count, total, squares = collectives.all_reduce(sums)
    variances: torch.Tensor = squares / count - (total / count).square()
    return variances


class Metrics:
    """Weighted means by name. `add` never waits for the device; `compute` does, once for all names."""

    def __init__(self) -> None:
        self.weight: Number = 1
        """Multiplies the weight of everything that is added; in an evaluation, the number of labels of the batch."""
        self.kept: list[Any] = []
        """Values of each batch of an evaluation set, which `Trainer.loss` appends for a measure that is no mean over
        batches; `Trainer.finalize_eval_metrics` computes it."""
        self._sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, name: str, value: Number, weight: Number = 1) -> None:
        """Adds ``value``, a number or scalar tensor, with ``weight`` to the mean ``name``."""
        value = value.detach().double() if isinstance(value, torch.Tensor) else torch.tensor(float(value)).double()
        factor = weight * self.weight
        if isinstance(factor, torch.Tensor):
            scale = factor.to(value.device, torch.float64)
        else:  # built on the device: copying it there would wait
            scale = torch.full((), float(factor), dtype=torch.float64, device=value.device)
        part = value * scale
        if name in self._sums:
            total, weights = self._sums[name]
            self._sums[name] = (total + part.to(total.device), weights + scale.to(total.device))
        else:
            self._sums[name] = (part, scale)

    def include(self, other: "Metrics") -> None:
        """Adds what was added to ``other``, and what was kept."""
        self.kept += other.kept
        for name, (total, weight) in other._sums.items():
            own_total, own_weight = self._sums.get(name, (torch.zeros_like(total), torch.zeros_like(weight)))
            self._sums[name] = (own_total + total.to(own_total.device), own_weight + weight.to(own_weight.device))

    def state_dict(self) -> dict[str, list[float]]:
        """Returns, by name, [weighted sum, sum of weights] of this rank since the last `compute`."""
        return {name: torch.stack(pair).tolist() for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]], /) -> None:
        """Restores the sums."""
        home = process_group.device()  # where most later values will be
        pairs = {name: torch.tensor(pair, dtype=torch.float64, device=home) for name, pair in state.items()}
        self._sums = {name: (total, weight) for name, (total, weight) in pairs.items()}

    def load_sharded_state_dict(self, states: Sequence[Mapping[str, Sequence[float]]], /) -> None:
        """Restores the sums of all ranks that saved on rank 0, and none on the others: they are added up anyway."""
        own = states if process_group.is_main() else []
        self.load_state_dict({name: [sum(state[name][n] for state in own) for n in (0, 1)] for name in states[0]})

    def compute(self, reduce: Reduce) -> dict[str, float]:
        """Returns the means since the last call, over all ranks, and resets them.

        ``reduce`` sums a float64 tensor [names, 2] over the ranks; all of them must have added the same names.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        devices = {self._sums[name][0].device for name in names}
        home = next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
        pairs = torch.stack([torch.stack(self._sums[name]).to(home, non_blocking=True) for name in names])
        self._sums.clear()
        sums = reduce(pairs.cpu()).tolist()
        return {name: total / weight for name, (total, weight) in zip(names, sums, strict=True) if weight}
