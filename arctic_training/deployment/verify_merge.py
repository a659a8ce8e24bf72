"""Proves that a merged model computes what the adapter on its base does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arctic_training.errors.types import CheckpointError
from arctic_training.generation.prompts import is_encoder_decoder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_SHAPE = (4, 32)
"""Rows and tokens of the input on which models are compared."""


@dataclass(frozen=True)
class MergeReport:
    """Largest differences of any logit between models on the same tokens, computed in fp32."""

    effect: float
    """Of the adapter: between the base with it and the base without it."""
    error: float
    """Of merging: between the merged model and the base with the adapter."""


def verify_merge(adapted: "Callable[[], PeftModel]", merged: "Callable[[], PreTrainedModel]") -> MergeReport:
    """Compares the models that ``adapted`` and ``merged`` load, one after the other.

    Raises `CheckpointError` when the adapter changes nothing, when the merged model equals the base, and when it is
    apart from the adapted one: by a hundredth of the adapter's effect where the weights are in fp32, and by half of
    it where they are in less, and rounding may undo what was learned.
    """
    before, base = _logits_with_and_without(adapted())
    model = merged()
    dtype = model.dtype
    after = _logits(model)
    effect, error = float((before - base).abs().max()), float((after - before).abs().max())
    if not effect:
        raise CheckpointError("the adapter changes nothing: the logits are those of its base; nothing was exported")
    if torch.equal(after, base):
        raise CheckpointError("the merged model has the logits of its base; nothing was exported")
    rounding = 1e-5 * float(before.abs().max())
    limit = min(effect / 2, max(effect / 100, rounding)) if dtype == torch.float32 else effect / 2
    if not error <= limit:  # nor where it is not a number
        mend = "" if dtype == torch.float32 else "; export with --dtype fp32"
        raise CheckpointError(
            f"the merged model is apart from the adapter on its base: logits differ by {error:.3g}, where the adapter "
            f"changes them by {effect:.3g}; nothing was exported{mend}"
        )
    return MergeReport(effect, error)


def _logits_with_and_without(model: "PeftModel") -> tuple[Tensor, Tensor]:
    """Returns the logits of the base with the adapter, and without it."""
    before = _logits(model)
    with model.disable_adapter():
        return before, _logits(model)


@torch.no_grad()
def _logits(model: "PreTrainedModel") -> Tensor:
    """Returns the first output of the model, computed in fp32, for tokens drawn by a fixed seed."""
    model = model.float().eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.get_input_embeddings().weight.shape[0], _SHAPE, generator=generator)
    arguments = {"decoder_input_ids": ids} if is_encoder_decoder(model) else {}
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)[0]
    return logits.float()
