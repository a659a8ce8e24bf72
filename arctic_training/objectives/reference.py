"""The frozen reference model of a run: how it is called, and the check that it is the policy at the start."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from arctic_training.distributed import process_group
from arctic_training.engine.engine import Engine
from arctic_training.errors.types import ModelError
from arctic_training.model.causal_lm import causal_model, embedding_rows
from arctic_training.model.rounding_noise import rounding_noise
from arctic_training.model.token_losses import token_losses
from arctic_training.state import eval_mode

_NUM_TOKENS = 16
"""Tokens whose log-probabilities are compared."""
_TOLERANCE, _ROUNDING_FACTOR = 1e-4, 1.5
"""The largest difference of a log-probability, or else of their root mean square in multiples of what rounding changes.
Adapters whose initial output is 0 but for rounding come to 0.9."""


class Probe(NamedTuple):
    """Log-probabilities, negated, of a few tokens under a model, ``[tokens]`` in nats."""

    losses: torch.Tensor
    rounded: torch.Tensor
    """The same when every intermediate result is changed by as much as rounding does."""


@torch.no_grad()
def probe(engine: Engine) -> Probe:
    """Returns the `Probe` of a reference model. All ranks must call it."""
    with eval_mode([engine.module]):
        losses = token_losses(engine, _inputs(engine))
        with rounding_noise(engine.module):
            return Probe(losses, token_losses(engine, _inputs(engine)))


@torch.no_grad()
def check_reference_is_policy(trainer: Any, reference: Probe | None = None) -> None:
    """Compares the reference that the recipe leaves out with the policy at the start, on a few tokens.

    ``reference`` is that of a reference model which is no longer in memory. All ranks must call it. Raises `ModelError`
    when they differ.
    """
    policy = trainer.model
    with eval_mode([policy.module]):
        losses = token_losses(policy, _inputs(policy))
    if reference is None:
        with reference_engine(trainer) as engine:
            reference = probe(engine)
    difference = losses - reference.losses
    largest = float(difference.abs().max())
    noise = (reference.rounded - reference.losses).norm()
    if not (largest <= _TOLERANCE or difference.norm() <= _ROUNDING_FACTOR * noise):
        adapted = hasattr(policy.module, "disable_adapter")
        cause = ", because the initial output of its adapter is not zero" if adapted else ""
        raise ModelError(
            f"ref_model: specify one; the policy differs from its default reference by {largest:.3g} in the "
            f"log-probability of a token{cause}"
        )


def _inputs(engine: Engine) -> dict[str, torch.Tensor]:
    vocabulary = embedding_rows(causal_model(engine)) or _NUM_TOKENS
    ids = (7 * torch.arange(1, _NUM_TOKENS + 1, device=process_group.device()) % vocabulary)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@contextmanager
def reference_engine(trainer: Any) -> Iterator[Engine]:
    """Yields the engine of the reference: that of the role ``ref_model``, else the policy in evaluation mode with its
    adapter disabled."""
    if (engine := trainer.engines.get("ref_model")) is not None:
        yield engine
        return
    module = trainer.model.module
    with eval_mode([module]), module.disable_adapter():
        yield trainer.model
