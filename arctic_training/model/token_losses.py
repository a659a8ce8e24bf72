"""The cross-entropy of a batch's targets, with logits computed only at the positions that have a target."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arctic_training.engine.engine import Engine
from arctic_training.loss.cross_entropy import linear_argmax, linear_cross_entropy, logits_cross_entropy
from arctic_training.loss.output_layer import rows_per_chunk
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.target_outputs import TargetOutputs, compute_at_targets, keep_added_loss

Reduction = Literal["sum", "none"]


def token_losses(
    engine: Engine | nn.Module,
    batch: Mapping[str, Any],
    *,
    reduction: Reduction = "none",
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    terms: list[Tensor] | None = None,
    entropies: list[Tensor] | None = None,
) -> Tensor:
    """Returns the cross-entropy of every target of ``batch`` in nats, fp32: ``[targets]``, row by row, or their sum.

    ``engine`` is an engine or a module around a language model of transformers. In ``batch``, ``input_ids`` and
    ``labels`` are ``[rows, T]`` (int64), and -100 marks a token that is no target. ``labels`` are not shifted: position
    t predicts label t + 1; ``shift_labels``, where present, are. For an encoder-decoder ``input_ids`` are what the
    encoder reads, ``[rows, S]``, and position t of the decoder predicts label t: it reads the labels behind its start
    token, unless ``decoder_input_ids`` are present. ``num_targets`` (int), where present, is the number of
    targets, and spares a synchronisation with a GPU on which labels were computed; for batches that the trainer moved
    to the device it is known already. ``num_items_in_batch`` is described below; of the other keys the model is given
    those that its forward takes.

    With sequence parallelism the losses are those of this rank's part. The sum over a batch without targets is 0, with
    gradients of 0. ``temperature`` divides the logits; ``label_smoothing`` is that of torch's ``cross_entropy``. With
    ``reduction="none"``, the entropy of the distribution of every target in nats, fp32 ``[targets]`` with a gradient,
    is appended to ``entropies``.

    What the model's own forward adds to the mean of its cross-entropy, such as the balance of its experts, is part of
    the sum, times ``num_items_in_batch`` or else the number of targets, by which the sum is to be divided. With
    ``reduction="none"`` it is appended to ``terms``, a scalar to be added to a loss that is a mean. Padding does not
    count in it, and a batch without targets has none.

    The model is called with its hooks, so it may be partitioned over ranks, carry adapters or be compiled; its
    ``forward`` is replaced during the call by one that ends in the loss.

    Raises `ModelError` for another model, and where an added loss would be lost: gradients are recorded, ``reduction``
    is "none" and there are no ``terms``.
    """

    num_targets, with_entropy = 0, entropies is not None

    def losses_of(outputs: TargetOutputs) -> Tensor:
        nonlocal num_targets
        num_targets = len(outputs.ids)
        if outputs.layer is not None:
            return _layer_losses(outputs, reduction, label_smoothing, temperature, with_entropy)
        logits = outputs.full_logits
        assert logits is not None
        logits = logits if temperature == 1.0 else logits.float() / temperature
        losses = logits_cross_entropy(logits, outputs.ids, label_smoothing=label_smoothing, with_entropy=with_entropy)
        return losses if reduction == "none" else losses.sum()

    losses, added = compute_at_targets(engine, batch, losses_of)
    if entropies is not None:
        losses, entropy = losses.unbind()
        entropies.append(entropy)
    if added is None:
        return losses
    if reduction == "none":
        keep_added_loss(engine, added, terms, "token_losses with reduction='none'")
        return losses
    # times the number by which the trainer divides this sum, so that the term is added once to the loss
    items: float = batch.get("num_items_in_batch", num_targets)
    return losses + added.to(losses.device) * items


@torch.no_grad()
def token_predictions(engine: Engine | nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Returns the most likely token at every target of ``batch``, int64 ``[targets]``, row by row.

    The arguments are those of `token_losses`, which says what it does. Raises `ModelError` for another model.
    """

    def most_likely(outputs: TargetOutputs) -> Tensor:
        if outputs.layer is None or outputs.hidden is None:
            assert outputs.full_logits is not None
            return outputs.full_logits.argmax(-1)
        return linear_argmax(outputs.hidden, outputs.layer.weight, outputs.bias, logit_map=outputs.logit_map)

    return compute_at_targets(engine, batch, most_likely)[0]


@dataclass(frozen=True)
class TokenScores:
    """Sums over the targets of a batch: fp32 ``[]`` each."""

    loss: Tensor
    """The sum of `token_losses`, in nats, with the loss that the model itself adds."""
    nll: Tensor
    """The cross-entropy in nats, without label smoothing and without that."""
    correct: Tensor
    """The number of targets that are the most likely token."""


@torch.no_grad()
def token_scores(engine: Engine | nn.Module, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> TokenScores:
    """Returns what an evaluation measures of the targets of ``batch``, by one forward pass without gradients.

    The arguments are those of `token_losses`, which says what it does. Raises `ModelError` for another model.
    """

    def sums_of(outputs: TargetOutputs) -> Tensor:
        ids, layer = outputs.ids, outputs.full_logits if outputs.layer is None else outputs.layer.weight
        assert layer is not None
        size = rows_per_chunk(ids.device.type, layer.shape[0 if outputs.layer is not None else -1])
        totals = torch.zeros(3, dtype=torch.float32, device=ids.device)
        for start in range(0, len(ids), size):
            rows = slice(start, start + size)
            logits = outputs.logits(rows)
            nll = loss = logits_cross_entropy(logits, ids[rows]).sum()
            if label_smoothing:
                loss = logits_cross_entropy(logits, ids[rows], label_smoothing=label_smoothing).sum()
            totals += torch.stack([loss, nll, (logits.argmax(1) == ids[rows]).sum()])
        return totals

    (loss, nll, correct), added = compute_at_targets(engine, batch, sums_of)
    if added is not None:
        loss = loss + added.to(loss.device) * batch["num_items_in_batch"]
    return TokenScores(loss, nll, correct)


def _layer_losses(
    outputs: TargetOutputs, reduction: Reduction, smoothing: float, temperature: float, with_entropy: bool
) -> Tensor:
    """Returns the losses of hidden states, by Liger's kernel where it is installed and fits."""
    linear, hidden, targets, bias = outputs.layer, outputs.hidden, outputs.ids, outputs.bias
    assert linear is not None and hidden is not None
    logit_map = replace(outputs.logit_map, temperature=temperature)
    # it has no temperature, and a cap without a scale only
    fits = logit_map.temperature == 1.0 and (logit_map.softcap is None or logit_map.scale == 1.0)
    # its gradients are of the unscaled sum in 16 bits, too large for fp16, and wait for those of the hidden states
    fits = fits and hidden.dtype != torch.float16 and (hidden.requires_grad or not linear.weight.requires_grad)
    if fits and hidden.is_cuda and reduction == "sum" and len(targets) and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Fused

        scaled = hidden * logit_map.scale if logit_map.scale != 1.0 else hidden
        options = (None, IGNORE_INDEX, 0.0, smoothing, "sum", logit_map.softcap, False, torch.float32)
        loss: Tensor = Fused.apply(scaled, linear.weight, targets, bias, *options)[0]
        return loss
    return linear_cross_entropy(
        hidden,
        linear.weight,
        targets,
        bias,
        reduction=reduction,
        label_smoothing=smoothing,
        logit_map=logit_map,
        with_entropy=with_entropy,
    )
