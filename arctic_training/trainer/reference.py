"""The frozen model that a policy is held to: read from ``ref_model``, or the policy as it was at the start."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationInfo, ValidatorFunctionWrapHandler
from torch import nn

from arctic_training.config.deepspeed import deepspeed_problems
from arctic_training.state import evaluating

_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE")
"""Adapters that put virtual tokens before a row."""


def read_reference(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo, *, unwanted: str = "") -> Any:
    """The section of the reference: given, or the policy's. None where the policy below its adapter is asked instead,
    and where a reference is ``unwanted``; raises ValueError with that text when one is given nevertheless."""
    policy = info.data.get("model")
    if value is not None and unwanted:
        raise ValueError(f"{unwanted}; leave ref_model out")
    if value is not None:
        return read(value)
    adapter = getattr(policy, "peft_config", None)
    if adapter is not None and not unwanted:
        if str(adapter.get("peft_type", "")).upper() in _PROMPTS:
            raise ValueError(f"give one; the policy without its {adapter['peft_type']} cannot be asked for it")
        if adapter.get("bias", "none") != "none":
            raise ValueError(f"give one; the adapter's bias: {adapter['bias']} changes the policy below it")
    return None if unwanted or policy is None or adapter is not None else read(policy)


def require_fit(block: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
    """The ``deepspeed:`` block of the reference. Raises ValueError when it contradicts the recipe."""
    policy, model = info.data.get("model"), info.data.get("ref_model")
    sizes = ("micro_batch_size", "gradient_accumulation_steps", "sequence_parallel_size")
    if block is None or "ref_model" not in info.data:
        return block
    if model is None:
        if policy is not None and getattr(policy, "peft_config", None) is None:
            raise ValueError("there is no reference that it would be for; leave it out")
        return block  # that of the policy, whose reference is below its adapter
    told: dict[str, Any] = {name: info.data.get(name, 1) for name in sizes}
    problems = deepspeed_problems(block, dtype=model.dtype, **told)
    if problems:
        raise ValueError("; ".join(f"{'.'.join(path)}: {what}" for path, what in problems))
    return block


@contextmanager
def without_adapter(module: nn.Module) -> Iterator[None]:
    """The model below its adapter, in evaluation mode."""
    with evaluating([module]), module.disable_adapter():  # type: ignore[operator]
        yield
