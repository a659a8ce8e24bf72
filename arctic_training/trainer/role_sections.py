"""The recipe sections of roles: fields of a trainer's config, and what a section that is left out stands for."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidationInfo, create_model, field_validator, model_validator

from arctic_training.config.checks.problems import Problem, Problems
from arctic_training.config.sections.component import TrainerComponent
from arctic_training.config.sections.deepspeed import deepspeed_problems
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.registry import lookup
from arctic_training.trainer.role import Role

_VIRTUAL_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE")
"""Adapters that put virtual tokens before a row."""

_OTHER_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of ``init_lora_weights`` that change the weights below the adapter, or its initial output."""

INHERITED = ("name_or_path", "dtype")
"""Keys that a section has from the one that it would default to, where it does not state them."""

_MODEL: object = Annotated[SerializeAsAny[ModelConfig], TrainerComponent("model_factory_type")]
_OPTIONAL_MODEL: object = Annotated[SerializeAsAny[ModelConfig] | None, TrainerComponent("model_factory_type")]
_OPTIMIZER: object = Annotated[SerializeAsAny[OptimizerConfig], TrainerComponent("optimizer_factory_type")]
_SCHEDULER: object = Annotated[SerializeAsAny[SchedulerConfig], TrainerComponent("scheduler_factory_type")]


def add_role_sections(config_type: type[TrainerConfig], roles: Iterable[Role]) -> type[TrainerConfig]:
    """Returns ``config_type``, or a subclass of it with the sections of ``roles`` that it lacks.

    A role that a subclass of a trainer defines anew has its sections anew; those that a config itself states stay.
    """
    known: dict[str, Role] = getattr(config_type, "section_roles", {})
    own = {role.name: role for role in roles if role.name in known or role.name not in config_type.model_fields}
    fields: dict[str, Any] = {
        name: section
        for role in roles
        for name, section in _sections(role).items()
        if name not in config_type.model_fields or known.get(role.name, role) != role
    }
    if not fields:
        return config_type
    module = config_type.__module__
    validators = {f"_{what}_{name}": mark(name) for name in own.keys() - known.keys() for what, mark in _MARKS.items()}
    created = create_model(
        config_type.__name__, __base__=config_type, __module__=module, __validators__=validators, **fields
    )
    created.section_roles = {**known, **own}  # type: ignore[attr-defined]
    return created


def _sections(role: Role) -> dict[str, tuple[Any, Any]]:
    """Returns annotation and field of every section of ``role``, by key."""
    what = role.description or f"The model of the role {role.name}."
    if role.default_to:
        default = f"By default ``{role.default_to}`` at the start of the run: built from its section again"
        default += ", or, with a ``peft_config``, without its adapter." if role.frozen else "."
        return {role.name: (_OPTIONAL_MODEL, Field(None, description=f"{what} {default}"))} | _training_sections(role)
    return {role.name: (_MODEL, Field(default_factory=dict, description=what))} | _training_sections(role)


def _training_sections(role: Role) -> dict[str, tuple[Any, Any]]:
    if role.frozen:
        return {}
    schedule = f"The learning-rate schedule of {role.name}."
    if role.steps_per_update_key:
        schedule += f" Lengths count the steps of {role.name}, of which there may be several for each of the run."
    optimizer = f"The optimizer of {role.name}, with the same keys as ``optimizer``."
    return {
        role.section("optimizer"): (_OPTIMIZER, Field(default_factory=dict, description=optimizer)),
        role.section("scheduler"): (_SCHEDULER, Field(default_factory=dict, description=schedule)),
    }


def _role(config_type: Any, name: str) -> Role:
    role: Role = config_type.section_roles[name]
    return role


def _inherit(name: str) -> Any:
    def inherit(cls: type[TrainerConfig], value: Any, read: Callable[[Any], Any], info: ValidationInfo) -> Any:
        """Gives a section without a name or dtype those of the section that it would default to."""
        default = info.data.get(_role(cls, name).default_to)
        default_type = getattr(default, "type", None)
        if default is not None and isinstance(value, Mapping) and value.get("type", default_type) == default_type:
            keys = [key for key in INHERITED if getattr(default, key, None)]
            value = {key: getattr(default, key) for key in keys} | dict(value)
        return None if value is None else read(value)

    return field_validator(name, mode="wrap")(inherit)


def _choose(name: str) -> Any:
    def choose(self: Any) -> Any:
        """Fills in a section that is left out. With an adapter a frozen role stays without a model of its own, unless
        it is used before training only."""
        role = _role(type(self), name)
        reason = str(getattr(self, role.not_needed_key)) if role.not_needed_key else ""
        if reason and getattr(self, name) is not None:
            raise ValueError(f"{name}: {reason}; remove it")
        if reason or getattr(self, name) is not None:
            return self
        default = getattr(self, role.default_to)
        adapter = getattr(default, "peft_config", None)
        if role.frozen and adapter is not None:
            _require_same_start(name, adapter)
            if not (role.precompute_key and getattr(self, role.precompute_key)):
                return self
            default = default.model_copy(update={"peft_config": None})
        default = _fitted(name, default, role, self)
        setattr(self, name, default)
        self.model_fields_set.discard(name)  # it is a default
        return self

    return model_validator(mode="after")(choose)


def _fitted(name: str, default: ModelConfig, role: Role, recipe: TrainerConfig) -> ModelConfig:
    """Returns the section ``default`` for a ``role`` of which the model computes something else, or the same section.

    Raises `Problems` where it does not fit.
    """
    tasks = role.tasks_beside(lookup("trainer", recipe.type).roles, vars(recipe))  # type: ignore[attr-defined]
    if getattr(default, "task", tasks[0]) in tasks and role.num_labels is None:
        return default
    section = default.model_copy()
    if len(tasks) == 1:  # the task that the recipe states is the other role's
        section.model_fields_set.discard("task")
    try:
        section.fit_role(tasks, role.num_labels)
    except Problems as error:
        raise Problems(Problem((name, *one.path), one.text) for one in error.problems) from None
    return section


def _check_deepspeed(name: str) -> Any:
    def check(self: Any) -> Any:
        """Refuses a block of a model that the run does not have, or that contradicts other keys."""
        role, section = _role(type(self), name), getattr(self, name)
        block = getattr(self, role.deepspeed) if role.deepspeed else None
        if block is None:
            return self
        default: Any = getattr(self, role.default_to, None)
        if section is None and getattr(default, "peft_config", None) is None:
            raise ValueError(f"{role.deepspeed}: this run has no {name}; remove it")
        problems = deepspeed_problems(
            block,
            dtype=(section or default).dtype,
            micro_batch_size=self.micro_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            sequence_parallel_size=self.sequence_parallel_size,
            model_parallel_size=self.mesh.model,
            max_grad_norm=None if role.frozen else self.max_grad_norm,
            gradient_clip_value=None if role.frozen else self.gradient_clip_value,
        )
        if problems:
            raise Problems(Problem((role.deepspeed, *one.path), one.text) for one in problems)
        return self

    return model_validator(mode="after")(check)


def _check_mesh(name: str) -> object:
    def check(self: TrainerConfig) -> TrainerConfig:
        """Refuses a model whose weights the processes of the mesh cannot divide."""
        section, size = getattr(self, name), self.mesh.model
        if size > 1 and section is not None and section.indivisible:
            raise Problems([Problem(("mesh", "model"), f"{size}, and {name}: {section.indivisible}")])
        return self

    return model_validator(mode="after")(check)


_MARKS: dict[str, Callable[[str], Any]] = {
    "inherit": _inherit,
    "choose": _choose,
    "check_deepspeed": _check_deepspeed,
    "check_mesh": _check_mesh,
}
"""The validators of the section of a role, by the beginning of their name."""


def _require_same_start(name: str, adapter: Mapping[str, Any]) -> None:
    """Raises ValueError for an adapter without which the model is not what it is with it at the start of the run."""
    if str(adapter.get("peft_type", "")).upper() in _VIRTUAL_TOKENS:
        raise ValueError(f"{name}: specify one; the policy has no output without its {adapter['peft_type']}")
    if adapter.get("bias", "none") != "none":
        raise ValueError(f"{name}: specify one; the adapter's bias: {adapter['bias']} changes the model below it")
    init = adapter.get("init_lora_weights", True)
    if init is False or str(init).lower().startswith(_OTHER_INITS):
        raise ValueError(
            f"{name}: specify one; with init_lora_weights: {str(init).lower()} the policy without its adapter is "
            "not the policy at the start"
        )
