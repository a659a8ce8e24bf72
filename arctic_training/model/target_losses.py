"""The losses of a language model at its targets only: no logits anywhere else, and never those of all targets at once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from arctic_training.loss.cross_entropy import linear_cross_entropy

_OURS = ("labels", "num_items_in_batch")


def target_losses(
    engine: Any,
    batch: Mapping[str, Any],
    *,
    label_smoothing: float = 0.0,
    reduction: str = "none",
) -> torch.Tensor:
    """The cross-entropy of each target of ``batch`` under a causal language model, or their sum.

    ``engine`` is anything that is called like the model, an engine or the model itself. A target is a label other than
    -100 at a position other than the first of its row; it is predicted from the position before it. Returns [targets]
    in the order of ``(labels[:, 1:] != -100).nonzero()``, or a scalar with ``reduction="sum"``; fp32.

    The output layer works on the hidden states that predict a target, in chunks (see `linear_cross_entropy`), inside
    the model's own forward pass, so that weights which are sharded over processes are there. A model that changes its
    logits after the output layer (a soft cap, a scale) gets them at the targets only.
    """
    labels = batch["labels"]
    where = labels[:, 1:] != -100
    rows, columns = where.nonzero(as_tuple=True)
    ask = _Ask(rows * labels.shape[1] + columns, labels[:, 1:][where], label_smoothing, reduction)
    inputs = {name: value for name, value in batch.items() if name not in _OURS}
    if "attention_mask" in inputs:
        # rows are padded on the right, where a causal model's padding is seen by padding only: no mask is needed
        del inputs["attention_mask"]
        inputs.pop("position_ids", None)
    model = getattr(engine, "module", engine)
    head = output_layer(model)
    with _asked(head, ask):
        output = engine(**inputs, use_cache=False)
    if ask.losses is None:
        return _from_logits(output.logits, ask)
    if not hasattr(head, "_logits_are_final"):
        # asked once for each model: a tensor that went through a soft cap or a scale is no longer what was handed over
        head._logits_are_final = bool(torch.equal(output.logits.detach(), ask.losses.detach()))
        if not head._logits_are_final:
            return target_losses(engine, batch, label_smoothing=label_smoothing, reduction=reduction)
    losses: torch.Tensor = output.logits
    return losses


def output_layer(model: nn.Module) -> Any:
    """The module that makes logits of hidden states. Raises TypeError for a model that has none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if head is None:
        raise TypeError(f"{type(base).__name__} has no output layer: it is no language model")
    return head


@dataclass
class _Ask:
    places: torch.Tensor
    """Flat positions [targets] of the hidden states that predict a target."""
    targets: torch.Tensor
    smoothing: float
    reduction: str
    losses: torch.Tensor | None = None
    """The answer, when the head gave it itself."""


@contextmanager
def _asked(head: Any, ask: _Ask) -> Iterator[None]:
    """While this lasts, ``head`` answers with losses, or with the logits of the targets alone."""
    forward: Callable[..., torch.Tensor] = head.forward
    plain = type(head) is nn.Linear and getattr(head, "_logits_are_final", True)

    def answer(hidden: torch.Tensor) -> torch.Tensor:
        wanted = hidden.reshape(-1, hidden.shape[-1]).index_select(0, ask.places)
        if not plain:
            return forward(wanted[None])
        ask.losses = linear_cross_entropy(
            wanted, head.weight, ask.targets, bias=head.bias, label_smoothing=ask.smoothing, reduction=ask.reduction
        )
        return ask.losses

    head.forward = answer
    try:
        yield
    finally:
        head.forward = forward
        if head.__dict__.get("forward") == type(head).forward.__get__(head):
            del head.__dict__["forward"]


def _from_logits(logits: torch.Tensor, ask: _Ask) -> torch.Tensor:
    return nn.functional.cross_entropy(
        logits[0].float(), ask.targets, label_smoothing=ask.smoothing, reduction=ask.reduction
    )
