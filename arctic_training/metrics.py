"""Numbers of a run, kept where they arise and reduced over the ranks only when they are read."""

from collections.abc import Callable, Mapping, Sequence

import torch

from arctic_training.distributed import process_group
from arctic_training.registry import numbered

Number = torch.Tensor | float | int
Reduce = Callable[[torch.Tensor], torch.Tensor]


def merge_metrics(values: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Returns both; a name of ``more`` that ``values`` has is numbered, so that neither takes the other's place."""
    return {**values, **dict(zip(numbered(more, taken=values), more.values(), strict=True))}


class Metrics:
    """Weighted means by name. `add` never waits for the device; `read` does, once for all names."""

    def __init__(self) -> None:
        self.weight: Number = 1
        """Multiplies the weight of everything that is added: the targets of the batch under evaluation."""
        self._sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, name: str, value: Number, weight: Number = 1) -> None:
        """Count ``value`` (a scalar) with ``weight`` in the mean called ``name``."""
        value = value.detach().double() if isinstance(value, torch.Tensor) else torch.tensor(float(value)).double()
        factor = weight * self.weight
        if isinstance(factor, torch.Tensor):
            scale = factor.to(value.device, torch.float64)
        else:  # made on the device: a copy to it would wait
            scale = torch.full((), float(factor), dtype=torch.float64, device=value.device)
        part = value * scale
        if name in self._sums:
            total, weights = self._sums[name]
            self._sums[name] = (total + part.to(total.device), weights + scale.to(total.device))
        else:
            self._sums[name] = (part, scale)

    def state_dict(self) -> dict[str, list[float]]:
        """What was added since the last read, on this process."""
        return {name: torch.stack(pair).tolist() for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]], /) -> None:
        home = process_group.device()  # where most of what is added later will be
        pairs = {name: torch.tensor(pair, dtype=torch.float64, device=home) for name, pair in state.items()}
        self._sums = {name: (total, weight) for name, (total, weight) in pairs.items()}

    def load_sharded_state_dict(self, shares: Sequence[Mapping[str, Sequence[float]]], /) -> None:
        """The sums are of all processes together: the first one goes on with everything, the others with nothing."""
        mine = shares if process_group.is_main() else []
        self.load_state_dict({name: [sum(share[name][n] for share in mine) for n in (0, 1)] for name in shares[0]})

    def read(self, reduce: Reduce) -> dict[str, float]:
        """The means since the last read, over all ranks by ``reduce``, a sum; all must have added the same names."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        devices = {self._sums[name][0].device for name in names}
        home = next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
        pairs = torch.stack([torch.stack(self._sums[name]).to(home, non_blocking=True) for name in names])
        self._sums.clear()
        sums = reduce(pairs.cpu()).tolist()
        return {name: total / weight for name, (total, weight) in zip(names, sums, strict=True) if weight}
