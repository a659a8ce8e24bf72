"""A model that takes part in a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Role:
    """Read from the recipe's sections ``<name>``, ``<name>_optimizer`` and ``<name>_scheduler``; the primary one, called
    ``model``, from ``model``, ``optimizer`` and ``scheduler``."""

    name: str
    frozen: bool = False
    """Never trained, so not saved either: a function of the recipe."""

    def section(self, part: str) -> str:
        return part if self.name == "model" else f"{self.name}_{part}"


@contextmanager
def spectator(engine: Any) -> Iterator[torch.nn.Module]:
    """The engine's model, for another's loss: gradients flow through it, and none stay in it."""
    module: torch.nn.Module = engine.module
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield module
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
