"""Whether a model with an adapter runs at all, found by running it."""

import traceback
from typing import Any

import torch
from torch import Tensor

from arctic_training.engine.zero import is_meta_tensor_error
from arctic_training.errors.types import ModelError
from arctic_training.model.target_losses import target_losses
from arctic_training.state import eval_mode

_LENGTH = 4


@torch.no_grad()
def require_runs(model: Any, kind: str, device: torch.device) -> None:
    """Raises `ModelError` when a small forward of ``model`` (an engine, or a module, on the meta device too) fails in
    the adapter, of the ``kind`` that the recipe names, or ends past the loss of this package.

    On several processes all of them must ask.
    """
    ids = torch.arange(_LENGTH, device=device)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "num_targets": _LENGTH - 1}
    try:
        with eval_mode([model if isinstance(model, torch.nn.Module) else model.module]):
            losses: Any = target_losses(model, inputs)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        unknown = is_meta_tensor_error(error) or (device.type == "meta" and isinstance(error, RuntimeError))
        if unknown or not any("/peft/" in frame.filename for frame in frames):
            return  # nothing is known of it, or the model itself is wrong, which is told where it trains
        text = " ".join(str(error).split())
        raise ModelError(
            f"model.peft_config: {kind} does not run with this model: {type(error).__name__}: {text[:300]}"
        ) from error
    if not isinstance(losses, Tensor) or losses.dim() != 1:
        raise ModelError(f"model.peft_config: {kind} calls the model past the loss of its targets; use another method")
