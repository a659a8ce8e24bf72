"""The frozen reference model of a run: how it is called, and the check that it is the policy at the start."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from arctic_training.errors.types import ModelError
from arctic_training.model.causal_lm import causal_model, embedding_rows
from arctic_training.model.rounding_noise import rounding_noise
from arctic_training.model.target_losses import target_losses
from arctic_training.state import eval_mode

_NUM_TOKENS = 16
"""Tokens whose log-probabilities are compared."""
_TOLERANCE, _ROUNDING_FACTOR = 1e-4, 1.5
"""The largest difference of a log-probability, or else of their root mean square in multiples of what rounding changes.
Adapters whose initial output is 0 but for rounding come to 0.9."""


@torch.no_grad()
def check_reference_is_policy(trainer: Any) -> None:
    """Compares the reference that the recipe leaves out with the policy at the start, on a few tokens.

    All ranks must call it. Raises `ModelError` when they differ.
    """
    policy, reference = trainer.model, trainer.engines.get("ref_model")
    vocabulary = embedding_rows(causal_model(policy)) or _NUM_TOKENS
    ids = (7 * torch.arange(1, _NUM_TOKENS + 1, device=trainer.device) % vocabulary)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with eval_mode([policy.module]):
        policy_losses = target_losses(policy, inputs)
    engine = policy if reference is None else reference
    with without_adapter(engine.module) if reference is None else eval_mode([engine.module]):
        reference_losses = target_losses(engine, inputs)
        with rounding_noise(engine.module):
            rounded_losses = target_losses(engine, inputs)
    difference = policy_losses - reference_losses
    largest = float(difference.abs().max())
    if not (
        largest <= _TOLERANCE or difference.norm() <= _ROUNDING_FACTOR * (rounded_losses - reference_losses).norm()
    ):
        cause = ", because the initial output of its adapter is not zero" if reference is None else ""
        raise ModelError(
            f"ref_model: specify one; the policy differs from its default reference by {largest:.3g} in the "
            f"log-probability of a token{cause}"
        )


@contextmanager
def without_adapter(module: nn.Module) -> Iterator[None]:
    """Disables the adapter of a PEFT model, and switches it to evaluation mode."""
    with eval_mode([module]), module.disable_adapter():  # type: ignore[operator]
        yield
