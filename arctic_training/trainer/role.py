"""A model that takes part in a run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, SerializeAsAny, create_model

from arctic_training.config.sections.component import TrainerComponent
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import RegistryError

_PARTS: dict[str, tuple[Any, str]] = {
    "model": (
        Annotated[SerializeAsAny[ModelConfig], TrainerComponent("model_factory_type")],
        "The model that plays the role",
    ),
    "optimizer": (
        Annotated[SerializeAsAny[OptimizerConfig], TrainerComponent("optimizer_factory_type")],
        "What takes the steps of the role",
    ),
    "scheduler": (
        Annotated[SerializeAsAny[SchedulerConfig], TrainerComponent("scheduler_factory_type")],
        "How the learning rate changes for the role",
    ),
}
"""How the sections of a role are read, and what they are."""


@dataclass(frozen=True)
class Role:
    """Read from the recipe's sections ``<name>`` and, unless it is frozen, ``<name>_optimizer`` and
    ``<name>_scheduler``; the primary one, called ``model``, from ``model``, ``optimizer`` and ``scheduler``."""

    name: str
    frozen: bool = False
    """Never trained, so not saved either: a function of the recipe."""
    steps_per_update_key: str = ""
    """What says in the recipe's config how many updates it takes for each of the run's; one when empty."""
    deepspeed: str = ""
    """Recipe key of a ``deepspeed:`` block of its own; the run's when empty, or not given."""

    def section(self, part: str) -> str:
        return part if self.name == "model" else f"{self.name}_{part}"


def check_roles(trainer: Any) -> None:
    """Raises `RegistryError` for a trainer class whose ``roles`` are not some `Role`, each of another name."""
    roles: Any = trainer.roles
    who = f"{trainer.__qualname__}: roles:"
    if not (isinstance(roles, (tuple, list)) and all(isinstance(role, Role) for role in roles)):
        wanted = '(Role("model"), Role("teacher", frozen=True))'
        raise RegistryError(f"{who} {short_repr(roles)}; a tuple of Role is wanted, such as {wanted}")
    names = [role.name for role in roles]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RegistryError(f"{who} {twice} is there twice; give one of them another name")
    if "model" not in names:
        raise RegistryError(f'{who} {", ".join(names) or "none"}; Role("model"), which the loop trains, is missing')
    if odd := [name for name in names if not name or name.startswith("_")]:
        raise RegistryError(
            f"{who} {odd[0]!r} can be no section of a recipe; give it a name without an underscore before it"
        )


def add_role_sections(config_type: type[TrainerConfig], roles: Iterable[Role]) -> type[TrainerConfig]:
    """The class that reads a recipe with a section for each part of each role: ``config_type`` where it has them, else
    a subclass with those that it lacks."""
    lacking: dict[str, Any] = {}
    for role in roles:
        for part, (section, meaning) in _PARTS.items():
            name = role.name if part == "model" else role.section(part)
            if name not in config_type.model_fields and (part == "model" or not role.frozen):
                lacking[name] = (section, Field(default_factory=dict, description=f"{meaning} {role.name}."))
    if not lacking:
        return config_type
    name, module = config_type.__name__, config_type.__module__
    return create_model(name, __base__=config_type, __module__=module, **lacking)


class RoleView:
    """The run as the parts of one role see it: the same, but for the lengths of that role's schedule."""

    def __init__(self, trainer: Any, role: Role) -> None:
        self._trainer, self._role = trainer, role
        self._pace = int(getattr(trainer.config, role.steps_per_update_key)) if role.steps_per_update_key else 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_trainer"], name)

    @property
    def frozen(self) -> bool:
        return self._role.frozen

    @property
    def optimizer_section(self) -> OptimizerConfig | None:
        """What the recipe says of the role's optimizer; None of a frozen one's."""
        return getattr(self.config, self._role.section("optimizer"), None)

    @property
    def training_horizon(self) -> int:
        return int(self._trainer.training_horizon) * self._pace

    @property
    def steps_per_epoch(self) -> int:
        return int(self._trainer.steps_per_epoch) * self._pace

    @property
    def warmup_steps(self) -> int:
        schedule = getattr(self.config, self._role.section("scheduler"))
        return int(schedule.warmup(self.training_horizon, self.steps_per_epoch))


@contextmanager
def frozen_parameters(engine: Any) -> Iterator[torch.nn.Module]:
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
