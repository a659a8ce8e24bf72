"""The cross-entropy of a batch's targets, with logits computed only at the positions that have a target."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from arctic_training.distributed.sequence_parallel import KEY
from arctic_training.engine.engine import Engine
from arctic_training.errors.types import ModelError
from arctic_training.generation.prompts import is_encoder_decoder
from arctic_training.loss.cross_entropy import (
    PLAIN,
    LogitMap,
    linear_argmax,
    linear_cross_entropy,
    logits_cross_entropy,
)
from arctic_training.loss.targets import IGNORE_INDEX, count_targets
from arctic_training.model import attention, auxiliary_losses
from arctic_training.model.causal_lm import causal_model, decoder_inputs, model_inputs
from arctic_training.model.output_head import OutputHead, output_head, without_cross_entropy
from arctic_training.model.transformers_internals import accepts

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

T = TypeVar("T")
Reduction = Literal["sum", "none"]
_Options = tuple[Reduction | Literal["argmax"], float, float]
"""The reduction of a `_LossSpec`, label smoothing and temperature."""


def target_losses(
    engine: Engine | nn.Module,
    batch: Mapping[str, Any],
    *,
    reduction: Reduction = "none",
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    terms: list[Tensor] | None = None,
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
    gradients of 0. ``temperature`` divides the logits; ``label_smoothing`` is that of torch's ``cross_entropy``.

    What the model's own forward adds to the mean of its cross-entropy, such as the balance of its experts, is part of
    the sum, times ``num_items_in_batch`` or else the number of targets, by which the sum is to be divided. With
    ``reduction="none"`` it is appended to ``terms``, a scalar to be added to a loss that is a mean. Padding does not
    count in it, and a batch without targets has none.

    The model is called with its hooks, so it may be partitioned over ranks, carry adapters or be compiled; its
    ``forward`` is replaced during the call by one that ends in the loss.

    Raises `ModelError` for another model, and where an added loss would be lost: gradients are recorded, ``reduction``
    is "none" and there are no ``terms``.
    """
    losses, added = _run(engine, batch, (reduction, label_smoothing, temperature))
    if added is not None and reduction == "none":
        if terms is not None:
            terms.append(added)
        elif torch.is_grad_enabled() and added.requires_grad:
            model = causal_model(engine)
            raise ModelError(auxiliary_losses.dropped_loss_message(model, "target_losses with reduction='none'"))
    return losses


@torch.no_grad()
def target_predictions(engine: Engine | nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Returns the most likely token at every target of ``batch``, int64 ``[targets]``, row by row.

    The arguments are those of `target_losses`, which says what it does. Raises `ModelError` for another model.
    """
    return _run(engine, batch, ("argmax", 0.0, 1.0))[0]


def _run(engine: Engine | nn.Module, batch: Mapping[str, Any], options: _Options) -> tuple[Tensor, Tensor | None]:
    """Returns the losses, or predictions, at the targets of ``batch``, and what the model adds to its own loss."""
    model = causal_model(engine)
    if is_encoder_decoder(model):
        batch = {"shift_labels": batch["labels"], "decoder_input_ids": decoder_inputs(model, batch["labels"]), **batch}
    spec = _LossSpec(batch, options)
    inputs = model_inputs(model, batch)
    rows: AbstractContextManager[None] = nullcontext()
    if batch.get("cu_seq_lens_q") is not None and batch.get("attention_mask") is None:
        spec.mask = None if KEY in batch else _mask_of_packed_row(batch)
    elif model.config._attn_implementation == attention.NAME:
        # rows are padded on the right, where a causal model does not look
        spec.mask = inputs.pop("attention_mask", None)
        rows = nullcontext() if spec.mask is None else attention.one_document_per_row()
    with rows, _forward_replaced(model, lambda **kwargs: _losses(model, kwargs, spec)):
        result: tuple[Tensor, Tensor | None] = engine(**inputs, labels=batch["labels"], use_cache=False)
    return result


def _mask_of_packed_row(batch: Mapping[str, Any]) -> Tensor:
    """Returns the attention mask ``[1, T]`` of a packed row, whose padding is a last document without targets."""
    start, positions = batch["cu_seq_lens_q"][-2], torch.arange(batch["labels"].shape[1], device=batch["labels"].device)
    last_has_targets = ((batch["labels"][0] != IGNORE_INDEX) & (positions > start)).any()
    mask: Tensor = (positions < start) | last_has_targets
    return mask.long()[None]


class _LossSpec:
    """What is computed for the current batch: losses, or with the reduction "argmax" predictions."""

    def __init__(self, batch: Mapping[str, Any], options: _Options) -> None:
        self.labels, self.shift_labels = batch["labels"], batch.get("shift_labels")
        self.num_targets, self.num_items = batch.get("num_targets"), batch.get("num_items_in_batch")
        self.reduction, self.smoothing, self.temperature = options
        self.mask: Tensor | None = None
        """The tokens ``[rows, T]`` that count in the loss that the model adds; attention does not need it."""


@dataclass(frozen=True)
class _Targets:
    """The targets of rows ``[rows, T]``, flattened row by row."""

    is_target: Tensor
    """Whether each position predicts a target: ``[rows * T]``, bool."""
    positions: Tensor
    """The positions that do: ``[targets]``, int64."""
    ids: Tensor
    """The target tokens: ``[targets]``, int64."""
    width: int
    """T."""


def _losses(model: "PreTrainedModel", kwargs: dict[str, Any], spec: _LossSpec) -> tuple[Tensor, Tensor | None]:
    """Stands in for the model's forward, with the same but for head and cross-entropy.

    Returns the losses, and what the model adds to its own loss, which a sum contains already.
    """
    labels: Tensor = kwargs.pop("labels", spec.labels)  # an adapter of virtual tokens has made them longer
    shifted: Tensor | None = spec.shift_labels
    num_targets = count_targets(labels, shifted=False) if shifted is None else count_targets(shifted, shifted=True)
    num_targets = spec.num_targets if num_targets is None else num_targets
    shifted = (nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:] if shifted is None else shifted).flatten()
    is_target = shifted != IGNORE_INDEX
    nonzero = is_target.nonzero() if num_targets is None else torch.nonzero_static(is_target, size=num_targets)
    positions = nonzero[:, 0]
    targets, head = _Targets(is_target, positions, shifted[positions], labels.shape[1]), output_head(model)
    with ExitStack() as stack:
        added_loss = stack.enter_context(without_cross_entropy(model, labels.device))
        if head.calls_loss:
            kwargs = {**kwargs, "labels": labels}
        if spec.mask is not None and head.backbone is not None:
            mask = nn.functional.pad(spec.mask, (labels.shape[1] - spec.mask.shape[1], 0), value=1)
            kwargs = {**kwargs, "attention_mask": mask}
            stack.callback(head.backbone.register_forward_pre_hook(_remove_mask, with_kwargs=True, prepend=True).remove)
        # a head that is more than its weight (an adapter, a quantised layer) must be called as it is
        is_linear = head.map is not None and type(head.head) is nn.Linear and not head.adds_loss_of_logits
        compute = _losses_at_targets if is_linear else _losses_of_logits
        output, losses = compute(model, head, kwargs, targets, spec)
        term = added_loss(output) if len(positions) else None
    if term is None:
        return losses, None
    auxiliary_losses.count_kept(model)
    if spec.reduction == "sum":
        # times the number by which the trainer divides this sum, so that the term is added once to the loss
        losses = losses + term.to(losses.device) * (len(positions) if spec.num_items is None else spec.num_items)
    return losses, term


def _remove_mask(module: nn.Module, args: T, kwargs: dict[str, Any]) -> tuple[T, dict[str, Any]]:
    return args, {**kwargs, "attention_mask": None}


def _losses_at_targets(
    model: "PreTrainedModel", head: OutputHead, kwargs: dict[str, Any], targets: _Targets, spec: _LossSpec
) -> tuple["ModelOutput", Tensor]:
    """Computes logits of the targets only, a few rows at a time, for models whose head is a linear layer."""
    linear = head.head
    assert isinstance(linear, nn.Linear)
    bias = None if head.bias is None else getattr(model, head.bias)[0].to(linear.weight.dtype)
    logit_map, results = replace(head.map or PLAIN, temperature=spec.temperature), list[Tensor]()

    def losses_of(hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        at_targets = hidden.flatten(0, 1).index_select(0, targets.positions)
        return _linear_losses(linear, bias, at_targets, targets.ids, logit_map, spec)

    def take(module: nn.Module, args: object, losses: Tensor) -> Tensor:
        results.append(losses)
        return torch.zeros(1, 1, 1, device=losses.device)  # logits that nobody reads

    # called as a module, and taken behind its hooks: its weight may have to come from other ranks, backward too
    handle = linear.register_forward_hook(take)
    try:
        with _forward_replaced(linear, losses_of):
            output = type(model).forward(model, **kwargs)
    finally:
        handle.remove()
    return output, results[0]


def _linear_losses(
    linear: nn.Linear, bias: Tensor | None, hidden: Tensor, targets: Tensor, logit_map: LogitMap, spec: _LossSpec
) -> Tensor:
    """Returns the losses of ``hidden`` ``[targets, width]``, by Liger's kernel where it is installed and fits. ``bias``
    ``[vocabulary]`` is added to the outputs of ``linear`` if it has none of its own."""
    bias = linear.bias if bias is None else bias
    hidden = hidden.to(linear.weight.dtype)
    if spec.reduction == "argmax":
        return linear_argmax(hidden, linear.weight, bias, logit_map=logit_map)
    kernel = _liger_kernel() if hidden.is_cuda and spec.reduction == "sum" and len(targets) else None
    # its gradients are of the unscaled sum in 16 bits, too large for fp16, and wait for those of the hidden states
    if hidden.dtype == torch.float16 or (linear.weight.requires_grad and not hidden.requires_grad):
        kernel = None
    # it has no temperature, and a cap without a scale only
    fits = logit_map.temperature == 1.0 and (logit_map.softcap is None or logit_map.scale == 1.0)
    if kernel is not None and fits:
        scaled = hidden * logit_map.scale if logit_map.scale != 1.0 else hidden
        loss: Tensor = kernel(scaled, linear.weight, targets, bias, spec.smoothing, logit_map.softcap)
        return loss
    return linear_cross_entropy(
        hidden,
        linear.weight,
        targets,
        bias,
        reduction=spec.reduction,
        label_smoothing=spec.smoothing,
        logit_map=logit_map,
    )


def _losses_of_logits(
    model: "PreTrainedModel", head: OutputHead, kwargs: dict[str, Any], targets: _Targets, spec: _LossSpec
) -> tuple["ModelOutput", Tensor]:
    """Computes the losses of other models from their logits: of the columns that have a target, or of all tokens but
    padding where the model adds a loss that depends on them."""
    positions, width = targets.positions, targets.width
    if head.adds_loss_of_logits and head.head is not None:
        mask = kwargs.get("attention_mask")
        real = torch.ones_like(targets.is_target) if mask is None else mask.flatten() != 0
        forward = head.head.forward
        with _forward_replaced(head.head, lambda hidden, *args: forward(hidden.flatten(0, 1)[real][None], *args)):
            output = type(model).forward(model, **kwargs)
        logits = output.logits[0, (real.cumsum(0) - 1)[positions]]
    else:
        rows, columns = positions // width, positions % width
        if accepts(model, "logits_to_keep"):
            some = columns if len(positions) else columns.new_zeros(1)
            kept, columns = torch.unique(some, return_inverse=True)
            kwargs, columns = {**kwargs, "logits_to_keep": kept}, columns[: len(positions)]
        output = type(model).forward(model, **kwargs)
        logits = output.logits[rows, columns]
    if spec.reduction == "argmax":
        return output, logits.argmax(-1)
    logits = logits if spec.temperature == 1.0 else logits.float() / spec.temperature
    losses = logits_cross_entropy(logits, targets.ids, label_smoothing=spec.smoothing)
    return output, losses if spec.reduction == "none" else losses.sum()


@contextmanager
def _forward_replaced(module: nn.Module, function: Callable[..., object]) -> Iterator[None]:
    """Replaces ``module.forward`` by ``function``; hooks and ``__call__`` stay."""
    original = module.__dict__.get("forward")
    module.forward = function
    try:
        yield
    finally:
        if original is None:
            del module.forward
        else:
            module.forward = original


def _liger_kernel() -> Callable[..., Tensor] | None:
    """Returns Liger's kernel for the sum of losses, or None where it is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Fused

    def kernel(
        hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, smoothing: float, softcap: float | None
    ) -> Tensor:
        options = (None, IGNORE_INDEX, 0.0, smoothing, "sum", softcap, False, torch.float32)
        loss: Tensor = Fused.apply(hidden, weight, targets, bias, *options)[0]
        return loss

    return kernel
