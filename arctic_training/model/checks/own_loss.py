"""Whether what is trained is the loss that the model computes itself, found by asking the model."""

import math
from typing import Any

import torch
from torch import nn

from arctic_training.errors.types import ModelError
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model import auxiliary_losses
from arctic_training.model.checks.dry_run import rows
from arctic_training.model.target_losses import causal_model, target_losses
from arctic_training.state import eval_mode

_LENGTH = 8
_NEAR = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""How far two ways of rounding may be apart, as a share of the loss."""


@torch.no_grad()
def require_own_loss(engine: Any, device: torch.device, *, shared: bool = False, overrides: Any = ()) -> None:
    """Compares the loss of a small row with the one that the model's own forward computes for it.

    A model that adds to its cross-entropy is watched from now on, so that a trainer that leaves it out is found.
    ``shared``: processes share sequences, of which each would see a part. ``overrides`` are the fields of the model's
    config that the recipe sets. On several processes all of them must ask. Raises `ModelError`.
    """
    from transformers import PreTrainedModel

    model = causal_model(engine)
    if not isinstance(model, PreTrainedModel):
        return
    batch = _row(model, device)
    following = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    with eval_mode([engine.module]):
        try:
            # positions are left to it; some forwards shift the labels, some are called with those of the next tokens
            plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
            found = [engine(**plain, labels=labels, use_cache=False).loss for labels in (batch["labels"], following)]
        except Exception:  # a model that computes no loss has none that could be another
            return
        terms: list[torch.Tensor] = []
        ours = float(target_losses(engine, batch, terms=terms).mean() + sum(terms))
    if any(loss is None for loss in found):
        return
    name, keys = type(model).__name__, ", ".join(auxiliary_losses.loss_keys(model.config))
    near = _NEAR.get(next(model.parameters()).dtype, 3e-2)
    own = min(map(float, found), key=lambda loss: abs(loss - ours))
    if not math.isclose(own, ours, abs_tol=near * max(1.0, abs(own))) and math.isfinite(own + ours):
        raise ModelError(
            f"model: on a row of {_LENGTH} tokens {name} computes a loss of {own:.4f} itself, and "
            f"{ours:.4f} would be trained on: its forward computes another loss than the cross-entropy of the "
            "next tokens, or counts positions from another than 0"
            + (f", or adds to it what cannot be had; its config has {keys}" if keys else "")
        )
    if terms and shared:
        raise ModelError(
            f"sequence_parallel_size: {name} adds to its loss by {keys or 'its own forward'} what depends on whole "
            "sequences; leave it out, or set the key so that nothing is added"
        )
    if terms and any(parameter.requires_grad for parameter in model.parameters()):
        auxiliary_losses.watch(model)
    if not terms and (idle := sorted(set(overrides) & set(auxiliary_losses.loss_keys(model.config)))):
        logger.warning(f"model.hf_config_kwargs: {idle[0]} changes nothing: {name} adds nothing to its loss as it is")


def _row(model: Any, device: torch.device) -> dict[str, Any]:
    ids = torch.arange(3, 3 + _LENGTH, device=device)[None] % (rows(model) or _LENGTH)
    places = torch.arange(_LENGTH, device=device)[None]
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}
