"""The loss of the targets of a batch, with logits made only where there is a target."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arctic_training.errors import ModelError
from arctic_training.loss.cross_entropy import LogitMap, linear_cross_entropy, logits_cross_entropy
from arctic_training.loss.targets import count
from arctic_training.model import attention
from arctic_training.model.output_head import OutputHead, accepts, output_head

Reduction = Literal["sum", "none"]

_NOT_FOR_THE_MODEL = {"num_items_in_batch", "num_targets", "labels", "shift_labels"}
_IGNORED = -100


def target_losses(
    engine: Any,
    batch: Mapping[str, Any],
    *,
    reduction: Reduction = "none",
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """The cross-entropy of every target of ``batch`` in nats, row by row: ``[targets]`` in fp32, or their sum.

    ``engine`` is an engine or a module around a causal language model of transformers. ``labels`` are not shifted:
    position t is asked for label t + 1, and -100 is no target; ``shift_labels``, when they are there, are. Where
    processes share sequences, the losses are those of this one's part. The sum over a batch without targets is 0, with
    gradients of 0. Only keys that the model knows may be in ``batch``, and ``num_items_in_batch``; ``num_targets``
    (int), when it is there, must be the number of targets, and saves a GPU from waiting for it where labels are made
    on it; those of a batch that the trainer has moved there were counted before. ``temperature`` divides the logits.

    The model is called as ever, hooks and all, so it may be parted over processes, carry adapters or be compiled; its
    own ``forward`` makes room for one that ends in the loss, for the duration of the call.
    """
    model = causal_model(engine)
    wanted = _Wanted(batch, reduction, label_smoothing, temperature)
    inputs = {key: value for key, value in batch.items() if key not in _NOT_FOR_THE_MODEL}
    padded = False
    if model.config._attn_implementation == attention.NAME:
        # rows are padded on the right, where a causal model does not look
        padded = inputs.pop("attention_mask", None) is not None
    rows = attention.one_document_each() if padded else nullcontext()
    with rows, _forward(model, lambda **told: _losses(model, told, wanted)):
        losses: Tensor = engine(**inputs, labels=batch["labels"], use_cache=False)
    return losses


def causal_model(engine: Any) -> Any:
    """The model of transformers inside an engine, an adapter or a compiled module. Raises `ModelError` for another."""
    model: Any = engine if isinstance(engine, nn.Module) else engine.module
    while not hasattr(model, "get_output_embeddings") or hasattr(model, "peft_config"):
        inner = model.get_base_model() if hasattr(model, "get_base_model") else _inner(model)
        if inner is None or inner is model:
            break
        model = inner
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
        raise ModelError(f"{type(model).__name__} is no language model of transformers: write a loss of its own")
    return model


def _inner(model: nn.Module) -> Any:
    return getattr(model, "_orig_mod", None) or getattr(model, "module", None)


class _Wanted:
    def __init__(self, batch: Mapping[str, Any], reduction: Reduction, smoothing: float, temperature: float) -> None:
        self.labels, self.shifted = batch["labels"], batch.get("shift_labels")
        self.count, self.share = batch.get("num_targets"), batch.get("num_items_in_batch")
        self.reduction, self.smoothing, self.temperature = reduction, smoothing, temperature


def _losses(model: Any, told: dict[str, Any], wanted: _Wanted) -> Tensor:
    """What the model's forward is while the losses of its targets are made."""
    labels: Tensor = told.pop("labels", wanted.labels)  # an adapter of virtual tokens has made them longer
    shifted: Tensor | None = wanted.shifted
    known = count(labels, shifted=False) if shifted is None else count(shifted, shifted=True)
    known = wanted.count if known is None else known
    shifted = (nn.functional.pad(labels, (0, 1), value=_IGNORED)[:, 1:] if shifted is None else shifted).flatten()
    here = shifted != _IGNORED
    places = (here.nonzero() if known is None else torch.nonzero_static(here, size=known))[:, 0]
    targets = shifted[places]
    head = output_head(model)
    if head is None:
        return _through_logits(model, told, labels, places, targets, wanted)
    asked = {key: value for key, value in told.items() if value is not None}
    hidden = head.backbone(**asked, **{key: value for key, value in head.added.items() if key not in asked})[0]
    hidden = hidden.flatten(0, 1).index_select(0, places)
    hidden = hidden if head.scale == 1.0 else hidden * head.scale

    def fused(rows: Tensor) -> Tensor:
        return _fused(head, rows, targets, wanted)

    with _forward(head.head, fused):
        losses: Tensor = head.head(hidden)  # called as a module: its weight may have to come from other processes
    return losses


def _fused(head: OutputHead, hidden: Tensor, targets: Tensor, wanted: _Wanted) -> Tensor:
    linear, how = head.head, replace(head.map, temperature=wanted.temperature)
    hidden = hidden.to(linear.weight.dtype)
    fused = _liger() if hidden.is_cuda and wanted.reduction == "sum" and len(targets) else None
    # its gradients are of the unscaled sum in 16 bits, too large for fp16, and wait for those of the hidden states
    if hidden.dtype == torch.float16 or (linear.weight.requires_grad and not hidden.requires_grad):
        fused = None
    if fused is not None and _knows(how):
        scaled = hidden * how.scale if how.scale != 1.0 else hidden
        loss: Tensor = fused(scaled, linear.weight, targets, linear.bias, wanted.smoothing, how.softcap)
        return loss
    return linear_cross_entropy(
        hidden,
        linear.weight,
        targets,
        linear.bias,
        reduction=wanted.reduction,
        label_smoothing=wanted.smoothing,
        logit_map=how,
    )


def _through_logits(
    model: Any, told: dict[str, Any], labels: Tensor, places: Tensor, targets: Tensor, wanted: _Wanted
) -> Tensor:
    """For models whose logits are not plainly those of a linear layer: all logits of the columns that have a target."""
    rows, columns = places // labels.shape[1], places % labels.shape[1]
    if accepts(model, "logits_to_keep"):
        some = columns if len(places) else columns.new_zeros(1)
        kept, columns = torch.unique(some, return_inverse=True)
        told, columns = {**told, "logits_to_keep": kept}, columns[: len(places)]
    out = type(model).forward(model, **told)
    logits = out.logits[rows, columns]
    logits = logits if wanted.temperature == 1.0 else logits.float() / wanted.temperature
    losses = logits_cross_entropy(logits, targets, label_smoothing=wanted.smoothing)
    if wanted.reduction == "none":
        return losses
    total = losses.sum()
    balance, weight = getattr(out, "aux_loss", None), getattr(model.config, "router_aux_loss_coef", 0.0)
    if isinstance(balance, Tensor) and weight:
        # so that it is added once to the loss, which is this sum divided by the share
        total = total + weight * balance.to(total.device) * (len(targets) if wanted.share is None else wanted.share)
    return total


@contextmanager
def _forward(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """``function`` in place of ``module.forward``; hooks and ``__call__`` stay."""
    kept = module.__dict__.get("forward")
    module.forward = function
    try:
        yield
    finally:
        if kept is None:
            del module.forward
        else:
            module.forward = kept


def _knows(how: LogitMap) -> bool:
    return how.temperature == 1.0 and (how.softcap is None or how.scale == 1.0)


def _liger() -> Callable[..., Tensor] | None:
    """Liger's kernel for the sum, where it is installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Fused

    def fused(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Any, smoothing: float, softcap: Any) -> Tensor:
        said = (None, _IGNORED, 0.0, smoothing, "sum", softcap, False, torch.float32)
        loss: Tensor = Fused.apply(hidden, weight, targets, bias, *said)[0]
        return loss

    return fused
