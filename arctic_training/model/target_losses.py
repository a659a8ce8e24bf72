"""The loss of the targets of a batch, with logits made only where there is a target."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arctic_training.distributed.sequence_parallel import KEY
from arctic_training.errors.types import ModelError
from arctic_training.loss.cross_entropy import PLAIN, LogitMap, linear_cross_entropy, logits_cross_entropy
from arctic_training.loss.targets import IGNORE_INDEX, count
from arctic_training.model import attention, auxiliary_losses
from arctic_training.model.output_head import OutputHead, accepts, output_head, without_cross_entropy

Reduction = Literal["sum", "none"]

_NOT_FOR_THE_MODEL = {"num_items_in_batch", "num_targets", "labels", "shift_labels"}


def target_losses(
    engine: Any,
    batch: Mapping[str, Any],
    *,
    reduction: Reduction = "none",
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    terms: list[Tensor] | None = None,
) -> Tensor:
    """The cross-entropy of every target of ``batch`` in nats, row by row: ``[targets]`` in fp32, or their sum.

    ``engine`` is an engine or a module around a causal language model of transformers. ``labels`` are not shifted:
    position t is asked for label t + 1, and -100 is no target; ``shift_labels``, when they are there, are. Where
    processes share sequences, the losses are those of this one's part. The sum over a batch without targets is 0, with
    gradients of 0. Only keys that the model knows may be in ``batch``, and ``num_items_in_batch``; ``num_targets``
    (int), when it is there, must be the number of targets, and saves a GPU from waiting for it where labels are made
    on it; those of a batch that the trainer has moved there were counted before. ``temperature`` divides the logits.

    What the model's own forward adds to the mean of its cross-entropy, such as the balance of its experts, is in the
    sum, times ``num_items_in_batch`` or else the number of targets, by which the sum is to be divided. Beside single
    losses it is appended to ``terms``, a scalar to be added to a loss that is a mean. Padding does not count in it, and
    a batch without targets has none.

    Raises `ModelError` for another model, and where what is added would be lost: gradients are recorded, and single
    losses are asked for without ``terms``.

    The model is called as ever, hooks and all, so it may be parted over processes, carry adapters or be compiled; its
    own ``forward`` makes room for one that ends in the loss, for the duration of the call.
    """
    model = causal_model(engine)
    wanted = _LossSpec(batch, reduction, label_smoothing, temperature)
    inputs = {key: value for key, value in batch.items() if key not in _NOT_FOR_THE_MODEL}
    rows: Any = nullcontext()
    if batch.get("cu_seq_lens_q") is not None and batch.get("attention_mask") is None:
        wanted.mask = None if KEY in batch else _without_filling(batch)
    elif model.config._attn_implementation == attention.NAME:
        # rows are padded on the right, where a causal model does not look
        wanted.mask = inputs.pop("attention_mask", None)
        rows = nullcontext() if wanted.mask is None else attention.one_document_each()
    with rows, _forward(model, lambda **told: _losses(model, told, wanted)):
        found = engine(**inputs, labels=batch["labels"], use_cache=False)
    losses: Tensor = found[0]
    added: Tensor | None = found[1]
    if added is not None and reduction == "none":
        if terms is not None:
            terms.append(added)
        elif torch.is_grad_enabled() and added.requires_grad:
            raise ModelError(auxiliary_losses.told_of(model, "target_losses, by which single losses are asked for,"))
    return losses


def _without_filling(batch: Mapping[str, Any]) -> Tensor:
    """Returns which tokens [1, T] of a packed row are no padding, which is a last document without targets."""
    start, places = batch["cu_seq_lens_q"][-2], torch.arange(batch["labels"].shape[1], device=batch["labels"].device)
    learns = ((batch["labels"][0] != IGNORE_INDEX) & (places > start)).any()
    real: Tensor = (places < start) | learns
    return real.long()[None]


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


class _LossSpec:
    """What is to become of the batch under way."""

    def __init__(self, batch: Mapping[str, Any], reduction: Reduction, smoothing: float, temperature: float) -> None:
        self.labels, self.shifted = batch["labels"], batch.get("shift_labels")
        self.count, self.share = batch.get("num_targets"), batch.get("num_items_in_batch")
        self.reduction, self.smoothing, self.temperature = reduction, smoothing, temperature
        self.mask: Tensor | None = None
        """Which tokens [rows, T] count in what the model adds to its loss; attention has no use for it."""


@dataclass(frozen=True)
class _Targets:
    """The targets of rows ``[rows, T]``."""

    there: Tensor
    """Whether each token, row by row, is asked for one."""
    places: Tensor
    """Where those are that are asked: [targets]."""
    ids: Tensor
    """What the right answers are: [targets]."""
    width: int
    """T."""


def _losses(model: Any, told: dict[str, Any], wanted: _LossSpec) -> tuple[Tensor, Tensor | None]:
    """What the model's forward is while the losses of its targets are made: its own, but for head and cross-entropy.

    Returns them, and what the model adds to its loss, which a sum holds already.
    """
    labels: Tensor = told.pop("labels", wanted.labels)  # an adapter of virtual tokens has made them longer
    shifted: Tensor | None = wanted.shifted
    known = count(labels, shifted=False) if shifted is None else count(shifted, shifted=True)
    known = wanted.count if known is None else known
    shifted = (nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:] if shifted is None else shifted).flatten()
    here = shifted != IGNORE_INDEX
    places = (here.nonzero() if known is None else torch.nonzero_static(here, size=known))[:, 0]
    targets, head = _Targets(here, places, shifted[places], labels.shape[1]), output_head(model)
    with ExitStack() as stack:
        added = stack.enter_context(without_cross_entropy(model, labels.device))
        if head.calls_loss:
            told = {**told, "labels": labels}
        if wanted.mask is not None and head.backbone is not None:
            mask = nn.functional.pad(wanted.mask, (labels.shape[1] - wanted.mask.shape[1], 0), value=1)
            told = {**told, "attention_mask": mask}
            stack.callback(head.backbone.register_forward_pre_hook(_unmask, with_kwargs=True, prepend=True).remove)
        # a head that is more than its weight (an adapter, a quantised layer) must be called as it is
        plain = head.map is not None and type(head.head) is nn.Linear and not head.adds_of_logits
        make = _at_targets if plain else _through_logits
        out, losses = make(model, head, told, targets, wanted)
        term = added(out) if len(places) else None
    if term is None:
        return losses, None
    auxiliary_losses.keep(model)
    if wanted.reduction == "sum":
        # so that it is added once to the loss, which is this sum divided by the share
        losses = losses + term.to(losses.device) * (len(places) if wanted.share is None else wanted.share)
    return losses, term


def _unmask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "attention_mask": None}


def _at_targets(
    model: Any, head: OutputHead, told: dict[str, Any], targets: _Targets, wanted: _LossSpec
) -> tuple[Any, Tensor]:
    """For models whose logits are those of a linear layer: none but those of targets, a few rows at a time."""
    linear: Any = head.head
    how, found = replace(head.map or PLAIN, temperature=wanted.temperature), list[Tensor]()

    def losses_of(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _fused(linear, hidden.flatten(0, 1).index_select(0, targets.places), targets.ids, how, wanted)

    def take(module: nn.Module, args: Any, losses: Tensor) -> Tensor:
        found.append(losses)
        return losses.new_zeros(1, 1, 1)  # logits that nobody reads

    # called as a module, and taken behind its hooks: its weight may have to come from other processes, backward too
    taking = linear.register_forward_hook(take)
    try:
        with _forward(linear, losses_of):
            out = type(model).forward(model, **told)
    finally:
        taking.remove()
    return out, found[0]


def _fused(linear: nn.Linear, hidden: Tensor, targets: Tensor, how: LogitMap, wanted: _LossSpec) -> Tensor:
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
    model: Any, head: OutputHead, told: dict[str, Any], targets: _Targets, wanted: _LossSpec
) -> tuple[Any, Tensor]:
    """For models whose logits come about in another way: all logits of the columns that have a target, or of all tokens
    but padding where the model adds to its loss what depends on them."""
    places, width = targets.places, targets.width
    if head.adds_of_logits and head.head is not None:
        mask = told.get("attention_mask")
        real = torch.ones_like(targets.there) if mask is None else mask.flatten() != 0
        plain = head.head.forward
        with _forward(head.head, lambda hidden, *args: plain(hidden.flatten(0, 1)[real][None], *args)):
            out = type(model).forward(model, **told)
        logits = out.logits[0, (real.cumsum(0) - 1)[places]]
    else:
        rows, columns = places // width, places % width
        if accepts(model, "logits_to_keep"):
            some = columns if len(places) else columns.new_zeros(1)
            kept, columns = torch.unique(some, return_inverse=True)
            told, columns = {**told, "logits_to_keep": kept}, columns[: len(places)]
        out = type(model).forward(model, **told)
        logits = out.logits[rows, columns]
    logits = logits if wanted.temperature == 1.0 else logits.float() / wanted.temperature
    losses = logits_cross_entropy(logits, targets.ids, label_smoothing=wanted.smoothing)
    return out, losses if wanted.reduction == "none" else losses.sum()


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
        said = (None, IGNORE_INDEX, 0.0, smoothing, "sum", softcap, False, torch.float32)
        loss: Tensor = Fused.apply(hidden, weight, targets, bias, *said)[0]
        return loss

    return fused
