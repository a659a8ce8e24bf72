"""Keys of a recipe for the frozen reference model that a policy is compared with."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import SerializeAsAny, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator

from arctic_training.config.checks.problems import Problem, Problems
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.component import TrainerComponent
from arctic_training.config.sections.deepspeed import deepspeed_problems
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.trainer import TrainerConfig

_VIRTUAL_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE")
"""Adapters that put virtual tokens before a row."""

_OTHER_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of ``init_lora_weights`` that change the weights below the adapter, or its initial output."""


class ReferenceConfig(TrainerConfig):
    """Keys of the trainers `dpo` and `grpo` that choose the reference model."""

    ref_model: Annotated[SerializeAsAny[ModelConfig] | None, TrainerComponent("model_factory_type")] = None
    """The reference model. By default the policy at the start of the run: built from the ``model`` section again, or,
    with a ``peft_config``, the policy without its adapter."""
    reference_model_deepspeed: Annotated[dict[str, Any] | None, RESUME_SAFE] = None
    """Replaces ``deepspeed`` for the reference model; stage 3 shards it over the ranks."""
    disable_dropout: bool = True
    """Train without dropout, that of an adapter included; otherwise the policy differs from its reference, and from the
    model that generated the completions, before the first step."""

    def reference_not_needed(self) -> str:
        """Returns why this recipe needs no reference model; empty when it needs one."""
        return ""

    @field_validator("ref_model", mode="wrap")
    @classmethod
    def _inherit_from_policy(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """A section without a name or dtype has those of the policy."""
        policy = info.data.get("model")
        policy_type = getattr(policy, "type", None)
        if isinstance(value, Mapping) and value.get("type", policy_type) == policy_type:
            names = [name for name in ("name_or_path", "dtype") if hasattr(policy, name)]
            value = {name: getattr(policy, name) for name in names} | dict(value)
        return None if value is None else read(value)

    @model_validator(mode="after")
    def _choose_reference(self) -> "ReferenceConfig":
        adapter = getattr(self.model, "peft_config", None)
        if reason := self.reference_not_needed():
            if self.ref_model is not None:
                raise ValueError(f"ref_model: {reason}; remove it")
        elif self.ref_model is None and adapter is not None:
            _require_same_start(adapter)
        elif self.ref_model is None:
            self.ref_model = self.model
            self.model_fields_set.discard("ref_model")  # it is a default
        self._check_deepspeed_block(adapter)
        return self

    def _check_deepspeed_block(self, adapter: Mapping[str, Any] | None) -> None:
        block = self.reference_model_deepspeed
        if block is not None and self.ref_model is None and adapter is None:
            raise ValueError("reference_model_deepspeed: there is no reference model; remove it")
        if block is not None and self.ref_model is not None:
            problems = deepspeed_problems(
                block,
                dtype=self.ref_model.dtype,
                micro_batch_size=self.micro_batch_size,
                gradient_accumulation_steps=self.gradient_accumulation_steps,
                sequence_parallel_size=self.sequence_parallel_size,
            )
            if problems:
                raise Problems(Problem(("reference_model_deepspeed", *one.path), one.text) for one in problems)


def _require_same_start(adapter: Mapping[str, Any]) -> None:
    """Raises ValueError for an adapter without which the policy is not the policy at the start of the run."""
    if str(adapter.get("peft_type", "")).upper() in _VIRTUAL_TOKENS:
        raise ValueError(f"ref_model: specify one; the policy has no output without its {adapter['peft_type']}")
    if adapter.get("bias", "none") != "none":
        raise ValueError(f"ref_model: specify one; the adapter's bias: {adapter['bias']} changes the model below it")
    init = adapter.get("init_lora_weights", True)
    if init is False or str(init).lower().startswith(_OTHER_INITS):
        raise ValueError(
            f"ref_model: specify one; with init_lora_weights: {str(init).lower()} the policy without its adapter is "
            "not the policy at the start"
        )
