"""Runs a model with an adapter on a small batch, to see that the adapter works with it."""

import traceback

import torch
from torch import Tensor

from arctic_training.engine.engine import Engine
from arctic_training.errors.types import ModelError
from arctic_training.model.tasks import TASKS, Task
from arctic_training.model.token_losses import token_losses
from arctic_training.state import eval_mode, needs_numbers

_LENGTH = 4


@torch.no_grad()
def check_adapter_forward(
    model: Engine | torch.nn.Module, method: str, device: torch.device, *, task: Task | None = None
) -> None:
    """Computes a small batch by ``model``, an engine or a module (on the meta device too).

    Of a causal language model, which is also assumed without a ``task``, these are the losses of the batch. All ranks
    must call it. Raises `ModelError` where the adapter, of PEFT's ``method``, fails, or where the forward of a causal
    language model does not end in `token_losses`.
    """
    ids = torch.arange(_LENGTH, device=device)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    is_causal = task is None or task is TASKS["causal_lm"]
    try:
        with eval_mode([model if isinstance(model, torch.nn.Module) else model.module]):
            if not is_causal:
                model(**batch, **({"labels": ids} if task is TASKS["seq2seq_lm"] else {}))
                return
            losses = token_losses(model, {**batch, "labels": ids, "num_targets": _LENGTH - 1})
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inconclusive = needs_numbers(error) or (device.type == "meta" and isinstance(error, RuntimeError))
        if inconclusive or not any("/peft/" in frame.filename for frame in frames):
            return  # nothing is known of the adapter, or the model itself is wrong, and will say so when it trains
        text = " ".join(str(error).split())
        raise ModelError(
            f"model.peft_config: {method} does not run with this model: {type(error).__name__}: {text[:300]}"
        ) from error
    if not isinstance(losses, Tensor) or losses.dim() != 1:
        raise ModelError(
            f"model.peft_config: {method} calls the model past the loss of its targets; use another method"
        )
