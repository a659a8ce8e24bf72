"""Runs a model on a small row, to see that the loss trained on is the one that its own forward computes."""

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from arctic_training.engine.engine import Engine
from arctic_training.errors.types import ModelError
from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model import auxiliary_losses
from arctic_training.model.causal_lm import causal_model, embedding_rows
from arctic_training.model.checks.causality import sees_ahead
from arctic_training.model.token_losses import token_losses
from arctic_training.state import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTH = 8
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""How far two ways of rounding may differ, as a share of the loss."""


@torch.no_grad()
def check_model_loss(
    engine: Engine, device: torch.device, *, sequence_parallel: bool = False, overrides: Collection[str] = ()
) -> None:
    """Compares the loss of a small row by `token_losses` with the one that the model's own forward computes for it.

    From now on a model with auxiliary losses is watched, so that a trainer that leaves them out is found.
    ``sequence_parallel``: each rank would see a part of every sequence. ``overrides`` are the fields of the model's
    config that the recipe sets. All ranks must call it. Raises `ModelError`, also for a model that is not causal.
    """
    from transformers import PreTrainedModel

    model = causal_model(engine)
    if not isinstance(model, PreTrainedModel):
        return
    batch = _small_row(model, device)
    # some forwards shift the labels, some expect those of the next tokens
    shifted = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    candidates = [batch["labels"]] if is_encoder_decoder(model) else [batch["labels"], shifted]
    with eval_mode([engine.module]):
        try:
            # positions are left to it
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            outputs = [engine(**inputs, labels=labels, use_cache=False) for labels in candidates]
            model_losses = [one.loss for one in outputs]
            is_causal = is_encoder_decoder(model) or not sees_ahead(model, lambda n: _first_logits(engine, inputs, n))
        except Exception:  # a model that computes no loss has none that could be another
            return
        terms: list[torch.Tensor] = []
        trained = float(token_losses(engine, batch, terms=terms).mean() + sum(terms))
    if not is_causal:
        decoder = "; model.hf_config_kwargs: {is_decoder: true} makes it causal"
        raise ModelError(
            f"model: {type(model).__name__} sees the tokens that it is to predict: its attention is not causal"
            + (decoder if getattr(model.config, "is_decoder", None) is False else "")
        )
    if any(loss is None for loss in model_losses):
        return
    name, keys = type(model).__name__, ", ".join(auxiliary_losses.loss_keys(model.config))
    tolerance = _TOLERANCE.get(next(model.parameters()).dtype, 3e-2)
    own = min(map(float, model_losses), key=lambda loss: abs(loss - trained))
    if not math.isclose(own, trained, abs_tol=tolerance * max(1.0, abs(own))) and math.isfinite(own + trained):
        raise ModelError(
            f"model: on a row of {_LENGTH} tokens {name} computes a loss of {own:.4f} itself, and "
            f"{trained:.4f} would be trained on: its forward computes another loss than the cross-entropy of the "
            "next tokens, or counts positions from another than 0"
            + (f", or adds to it what cannot be had; its config has {keys}" if keys else "")
        )
    if terms and sequence_parallel:
        raise ModelError(
            f"sequence_parallel_size: {name} adds to its loss by {keys or 'its own forward'} what depends on whole "
            "sequences; remove it, or set the key so that nothing is added"
        )
    if terms and any(parameter.requires_grad for parameter in model.parameters()):
        auxiliary_losses.watch(model)
    if not terms and (idle := sorted(set(overrides) & set(auxiliary_losses.loss_keys(model.config)))):
        logger.warning(f"model.hf_config_kwargs: {idle[0]} changes nothing: {name} adds nothing to its loss as it is")


def _first_logits(engine: Engine, row: Mapping[str, torch.Tensor], n: int) -> torch.Tensor:
    """Returns the logits ``[1, T - 1, vocabulary]`` before the last token of ``row``, whose token n stands there."""
    ids = row["input_ids"].clone()
    ids[:, -1] = ids[:, n]
    logits: torch.Tensor = engine(**{**row, "input_ids": ids}, use_cache=False).logits[:, :-1]
    return logits


def _small_row(model: "PreTrainedModel", device: torch.device) -> dict[str, Any]:
    ids = torch.arange(3, 3 + _LENGTH, device=device)[None] % (embedding_rows(model) or _LENGTH)
    row = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    return row if is_encoder_decoder(model) else {**row, "position_ids": torch.arange(_LENGTH, device=device)[None]}
