"""A model that takes part in a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Role:
    """Read from the recipe's sections ``<name>``, ``<name>_optimizer``, ``<name>_scheduler``; the primary one, called
    ``model``, from ``model``, ``optimizer`` and ``scheduler``."""

    name: str
    frozen: bool = False
    """Never trained, so not saved either: a function of the recipe."""
    updates: str = ""
    """What says in the recipe's config how many updates it takes for each of the run's; one when empty."""
    deepspeed: str = ""
    """Recipe key of a ``deepspeed:`` block of its own; the run's when empty, or not given."""

    def section(self, part: str) -> str:
        return part if self.name == "model" else f"{self.name}_{part}"


class RoleView:
    """The run as the parts of one role see it: the same, but for the lengths of that role's schedule."""

    def __init__(self, trainer: Any, role: Role) -> None:
        self._trainer, self._role = trainer, role
        self._pace = int(getattr(trainer.config, role.updates)) if role.updates else 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_trainer"], name)

    @property
    def training_horizon(self) -> int:
        return int(self._trainer.training_horizon) * self._pace

    @property
    def updates_per_epoch(self) -> int:
        return int(self._trainer.updates_per_epoch) * self._pace

    @property
    def warmup_steps(self) -> int:
        schedule = getattr(self.config, self._role.section("scheduler"))
        return int(schedule.warmup(self.training_horizon, self.updates_per_epoch))


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
