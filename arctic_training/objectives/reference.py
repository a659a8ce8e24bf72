"""The frozen model that a policy is held to: read from ``ref_model``, or the policy as it was at the start."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationInfo, ValidatorFunctionWrapHandler
from torch import nn

from arctic_training.config.checks.deepspeed import deepspeed_problems
from arctic_training.errors.types import ModelError
from arctic_training.model.causal_lm import causal_model, embedding_rows
from arctic_training.model.rounding_noise import rounding_noise
from arctic_training.model.target_losses import target_losses
from arctic_training.state import eval_mode

_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE")
"""Adapters that put virtual tokens before a row."""

_OTHER_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of LoRA that assign weights below it, or are more than nothing themselves."""

_LENGTH, _NEAR, _ROUNDINGS = 16, 1e-4, 1.5
"""Tokens that are compared, and how near their log-probabilities must be: or else within so many times of what
rounding does to them, by the mean of squares. Adapters that start as nothing but for rounding come to 0.9 times."""


def read_reference(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo, *, unwanted: str = "") -> Any:
    """The section of the reference: given, its name and dtype those of the policy where it leaves them out, or the
    policy's. None where the policy below its adapter is asked instead, and where a reference is ``unwanted``; raises
    ValueError with that text when one is given nevertheless."""
    policy = info.data.get("model")
    if value is not None and unwanted:
        raise ValueError(f"{unwanted}; leave ref_model out")
    if value is not None:
        return read(_filled(value, policy) if isinstance(value, Mapping) else value)
    adapter = getattr(policy, "peft_config", None)
    if adapter is not None and not unwanted:
        if str(adapter.get("peft_type", "")).upper() in _PROMPTS:
            raise ValueError(f"give one; the policy without its {adapter['peft_type']} cannot be asked for it")
        if adapter.get("bias", "none") != "none":
            raise ValueError(f"give one; the adapter's bias: {adapter['bias']} changes the policy below it")
        start = adapter.get("init_lora_weights", True)
        if start is False or str(start).lower().startswith(_OTHER_STARTS):
            raise ValueError(
                f"give one; with init_lora_weights: {str(start).lower()} the policy below its adapter is not that of "
                "the start"
            )
    return None if unwanted or policy is None or adapter is not None else read(policy)


def _filled(section: Mapping[str, Any], policy: Any) -> dict[str, Any]:
    kind = getattr(policy, "type", None)
    same = section.get("type", kind) == kind
    names = [name for name in ("name_or_path", "dtype") if same and hasattr(policy, name)]
    return {name: getattr(policy, name) for name in names} | dict(section)


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


@torch.no_grad()
def require_start(trainer: Any) -> None:
    """Raises `ModelError` where the reference that the recipe leaves out is not the policy, which is at its start.

    Asks both for a few tokens; on several processes all of them must ask.
    """
    policy, apart = trainer.model, trainer.engines.get("ref_model")
    count = embedding_rows(causal_model(policy)) or _LENGTH
    ids = (7 * torch.arange(1, _LENGTH + 1, device=trainer.device) % count)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with eval_mode([policy.module]):
        start = target_losses(policy, inputs)
    below, held = (policy, without_adapter) if apart is None else (apart, lambda module: eval_mode([module]))
    with held(below.module):
        found = target_losses(below, inputs)
        with rounding_noise(below.module):
            rounded = target_losses(below, inputs)
    far = float((start - found).abs().max())
    if not (far <= _NEAR or (start - found).norm() <= _ROUNDINGS * (rounded - found).norm()):
        raise ModelError(
            f"ref_model: give one; the policy that starts differs from what it would be held to by {far:.3g} in the "
            "log-probability of a token" + ", since its adapter starts as more than nothing" * (apart is None)
        )


@contextmanager
def without_adapter(module: nn.Module) -> Iterator[None]:
    """The model below its adapter, in evaluation mode."""
    with eval_mode([module]), module.disable_adapter():  # type: ignore[operator]
        yield
