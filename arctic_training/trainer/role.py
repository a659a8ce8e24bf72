"""Roles: the models of a run."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from arctic_training.component import TrainerView
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.engine.engine import Engine
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import ModelError, RegistryError
from arctic_training.model.causal_lm import text_config


@dataclass(frozen=True)
class Role:
    """A model of the run. It is configured by the sections ``<name>`` and, unless frozen, ``<name>_optimizer`` and
    ``<name>_scheduler``, which its trainer's recipes have by it; the primary role, ``model``, by ``model``,
    ``optimizer`` and ``scheduler``."""

    name: str
    frozen: bool = False
    """Neither trained nor saved: it is determined by the recipe."""
    steps_per_update_key: str = ""
    """Recipe key with the number of optimizer steps of this role for each step of the run; one when empty."""
    deepspeed: str = ""
    """Recipe key of the role's own ``deepspeed:`` block; that of the run when empty or unset."""
    precompute_key: str = ""
    """Recipe key that, when true, has this frozen model used before training only: it is built before the others,
    passed to the trainer's method ``precompute(role: str, engine: Engine)``, and freed."""
    default_to: str = ""
    """The role whose section serves where a recipe leaves out this role's: its model as it is at the start of the run.
    A section that is stated inherits name and dtype. Empty: the section has the defaults of its class."""
    not_needed_key: str = ""
    """Key or property of the config that says why a recipe needs no such model; it is empty where one is needed."""
    same_vocabulary: bool = False
    """Whether a model with a vocabulary of another size than that of ``model`` is refused before data are prepared."""
    description: str = ""
    """What the model is, a sentence for the recipe reference."""
    tasks: tuple[str, ...] = ("causal_lm",)
    """Values of ``model.task`` that a model of transformers in this role may have; the first is the default. A
    role with ``default_to`` and as many tasks as that other role has the one in the place of the other's task."""
    num_labels: int | None = None
    """How many labels the head of the model has, where the objective and not the recipe decides it."""

    def section(self, part: str) -> str:
        """Returns the name of the role's section for ``part``: ``optimizer`` or ``scheduler``."""
        return part if self.name == "model" else f"{self.name}_{part}"

    def tasks_beside(self, roles: Iterable["Role"], sections: Mapping[str, object]) -> tuple[str, ...]:
        """Returns the ``tasks`` of this role in a recipe; ``sections`` has its sections of the other ``roles``."""
        other = next((role for role in roles if role.name == self.default_to), None)
        task = getattr(sections.get(self.default_to), "task", None)
        if other is None or len(other.tasks) != len(self.tasks) or task not in other.tasks:
            return self.tasks
        return (self.tasks[other.tasks.index(task)],)


def check_roles(trainer: Any) -> None:
    """Raises `RegistryError` for a trainer class whose ``roles`` are not some `Role`, each of another name."""
    roles: object = trainer.roles
    who = f"{trainer.__qualname__}: roles:"
    if not (isinstance(roles, (tuple, list)) and all(isinstance(role, Role) for role in roles)):
        example = '(Role("model"), Role("teacher", frozen=True))'
        raise RegistryError(f"{who} {short_repr(roles)}; expected a tuple of Role, such as {example}")
    names = [role.name for role in roles]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RegistryError(f"{who} {twice} occurs twice; give one of them another name")
    if (lacks := next((one.name for one in roles if one.precompute_key), "")) and not hasattr(trainer, "precompute"):
        raise RegistryError(f"{who} {lacks} has a precompute_key; define precompute(self, role, engine), which uses it")
    if "model" not in names:
        raise RegistryError(f'{who} {", ".join(names) or "none"}; Role("model"), which the loop trains, is missing')
    if odd := [name for name in names if not name or name.startswith("_")]:
        raise RegistryError(
            f"{who} {odd[0]!r} cannot be a section of a recipe; give it a name without a leading underscore"
        )
    for number, role in enumerate(roles):
        if role.default_to and role.default_to not in names[:number]:
            raise RegistryError(f"{who} {role.name} defaults to {role.default_to!r}, which is no role before it")


def check_vocabularies(roles: Iterable[Role], models: Mapping[str, Any]) -> None:
    """Raises `ModelError` for a role with ``same_vocabulary`` and a vocabulary of another size than the primary role's.

    ``models`` are transformers models by role; those without a vocabulary, or None, are not compared.
    """
    sizes = {name: getattr(text_config(model), "vocab_size", None) for name, model in models.items()}
    size = sizes.get("model")
    for role in roles:
        other = sizes.get(role.name)
        if role.same_vocabulary and size and other and other != size:
            raise ModelError(
                f"{role.name}.name_or_path: its vocabulary has {other} tokens, and that of model has {size}: "
                "probabilities of different tokens cannot be compared; give a model of the same tokenizer"
            )


class RoleView:
    """A `TrainerView` for the components of one role: that of the trainer, with the lengths of the role's schedule."""

    def __init__(self, trainer: TrainerView, role: Role) -> None:
        self._trainer, self._role = trainer, role
        self._steps_per_update = (
            int(getattr(trainer.config, role.steps_per_update_key)) if role.steps_per_update_key else 1
        )

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the trainer: what no property here states does not depend on the role."""
        return getattr(self.__dict__["_trainer"], name)

    @property
    def config(self) -> TrainerConfig:
        """The config of the run."""
        return self._trainer.config

    @property
    def frozen(self) -> bool:
        """Returns whether the role is frozen."""
        return self._role.frozen

    @property
    def deepspeed_block(self) -> Mapping[str, Any] | None:
        """The role's own ``deepspeed:`` block; None where it is that of the run."""
        return getattr(self.config, self._role.deepspeed) if self._role.deepspeed else None

    @property
    def optimizer_section(self) -> OptimizerConfig | None:
        """The optimizer section of the role; None for a frozen role."""
        return getattr(self.config, self._role.section("optimizer"), None)

    @property
    def training_horizon(self) -> int:
        """Optimizer steps of the role in the whole run."""
        return int(self._trainer.training_horizon) * self._steps_per_update

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the role in an epoch."""
        return int(self._trainer.steps_per_epoch) * self._steps_per_update

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of warm-up of the role."""
        schedule = getattr(self.config, self._role.section("scheduler"))
        return int(schedule.warmup(self.training_horizon, self.steps_per_epoch))


@contextmanager
def frozen_parameters(engine: Engine) -> Iterator[torch.nn.Module]:
    """Yields the engine's module for the loss of another model: gradients flow through it but are not stored."""
    module = engine.module
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield module
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
