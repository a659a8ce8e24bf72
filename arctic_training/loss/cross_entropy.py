"""Cross-entropy of a linear layer's outputs in chunks of rows, so that all logits are never in memory at once."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arctic_training.loss.output_layer import PLAIN, LayerGradients, LogitMap, rows_per_chunk, scaled_gradients


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    reduction: Literal["sum", "none"] = "sum",
    label_smoothing: float = 0.0,
    logit_map: LogitMap = PLAIN,
    chunk_rows: int | None = None,
    with_entropy: bool = False,
) -> Tensor:
    """Returns ``cross_entropy(logit_map(hidden @ weight.T + bias), targets)`` in nats, fp32: a scalar, or ``[rows]``.

    ``hidden`` is ``[rows, width]``, ``weight`` ``[vocabulary, width]`` and ``bias`` ``[vocabulary]``, of one floating
    dtype; ``targets`` is ``[rows]`` (int64) of token ids, all of which count. ``label_smoothing`` is that of
    `torch.nn.functional.cross_entropy`.

    For the sum, gradients are computed together with the loss, since every row has the same weight: no logits are
    computed twice (Hsu et al. 2024, arXiv 2410.10989, section 3.2). For single rows the logits are computed again in
    the backward pass, and so they are in fp16, whose gradients would overflow without the loss scale, which is known
    only there. Gradients can be taken once, and not be differentiated. Without rows the sum is 0, with gradients of 0.

    With ``with_entropy`` and reduction "none" it returns ``[2, rows]``: the losses, and the entropy of each row's
    distribution in nats, both with a gradient.

    Raises ValueError for shapes that do not fit together.
    """
    if hidden.shape[0] != targets.shape[0] or hidden.shape[-1] != weight.shape[-1]:
        shapes = f"{tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"hidden, weight and targets have shapes {shapes}, not [n, h], [v, h] and [n]")
    rows = chunk_rows or rows_per_chunk(hidden.device.type, weight.shape[0])
    options = _Options(label_smoothing, logit_map, rows, torch.is_grad_enabled(), with_entropy)
    summed = reduction == "sum" and hidden.dtype != torch.float16
    function = _SummedCrossEntropy if summed else _RowCrossEntropy
    losses: Tensor = function.apply(hidden, weight, bias, targets, options)  # type: ignore[no-untyped-call]
    return losses.sum() if reduction == "sum" and not summed else losses


def logits_cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, with_entropy: bool = False
) -> Tensor:
    """Returns the cross-entropy of every row in nats: ``[rows]``, fp32; ``with_entropy`` as `linear_cross_entropy`.

    ``logits`` is ``[rows, vocabulary]``, floating; ``targets`` is ``[rows]`` (int64).
    """
    logits = logits.float()
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    if not with_entropy:
        return losses
    log_probs = logits.log_softmax(-1).clamp(min=torch.finfo(logits.dtype).min)  # 0 times -inf would be NaN
    return torch.stack([losses, -(log_probs.exp() * log_probs).sum(-1)])


@torch.no_grad()
def linear_argmax(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, logit_map: LogitMap = PLAIN) -> Tensor:
    """Returns the token with the largest logit of each row, int64 ``[rows]``; the arguments are those of
    `linear_cross_entropy`."""
    rows = rows_per_chunk(hidden.device.type, weight.shape[0])
    options = _Options(0.0, logit_map, rows, False)
    starts = range(0, max(len(hidden), 1), rows)
    return torch.cat([_logits(hidden[start : start + rows], weight, bias, options)[0].argmax(1) for start in starts])


@dataclass(frozen=True)
class _Options:
    """The options of a loss."""

    smoothing: float
    map: LogitMap
    chunk_rows: int
    grad_enabled: bool
    """Whether gradients are recorded; inside a function's forward torch does not tell."""
    with_entropy: bool = False


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, options: _Options) -> tuple[Tensor, Tensor | None]:
    """Returns the logits of some rows in fp32, which may be overwritten, and the derivative of the cap, if any."""
    logits = torch.mm(hidden, weight.t()) if bias is None else torch.addmm(bias, hidden, weight.t())
    logits = logits.float()
    if options.map.softcap is None:
        return (logits.mul_(options.map.slope) if options.map.slope != 1.0 else logits), None
    capped = logits.mul_(options.map.scale / options.map.softcap).tanh_()
    derivative = 1 - capped.square()
    return capped.mul_(options.map.softcap / options.map.temperature), derivative


def _losses(logits: Tensor, targets: Tensor, options: _Options) -> tuple[Tensor, Tensor]:
    """Returns every row's loss and the softmax of ``logits``, which are overwritten."""
    target_logits = logits.gather(1, targets[:, None])
    if options.smoothing:
        target_logits = (1 - options.smoothing) * target_logits + options.smoothing * logits.mean(1, keepdim=True)
    highest = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(highest).exp_()
    total = exponentials.sum(1, keepdim=True)
    return (total.log() + highest - target_logits)[:, 0], exponentials.div_(total)


def _logit_gradients(softmax: Tensor, targets: Tensor, options: _Options) -> Tensor:
    """Returns the gradient of every row's loss in its logits; overwrites ``softmax``."""
    gradients = softmax.sub_(options.smoothing / softmax.shape[1]) if options.smoothing else softmax
    at_targets = torch.full_like(gradients[:, :1], options.smoothing - 1)
    return gradients.scatter_add_(1, targets[:, None], at_targets)


def _output_gradients(gradients: Tensor, cap: Tensor | None, options: _Options) -> Tensor:
    """Returns gradients in logits as gradients in the linear layer's outputs; overwrites ``gradients``."""
    if cap is not None:
        gradients.mul_(cap)
    return gradients.mul_(options.map.slope) if options.map.slope != 1.0 else gradients


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum of the losses; its gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options
    ) -> Tensor:
        needed = tuple(options.grad_enabled and need for need in ctx.needs_input_grad[:3])
        gradients = LayerGradients(needed, hidden, weight, bias)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), options.chunk_rows):
            rows, row_targets = hidden[start : start + options.chunk_rows], targets[start : start + options.chunk_rows]
            logits, cap = _logits(rows, weight, bias, options)
            losses, softmax = _losses(logits, row_targets, options)
            total += losses.sum()
            if any(needed):
                outputs = _output_gradients(_logit_gradients(softmax, row_targets, options), cap, options)
                gradients.add(start, outputs, rows, weight)
        ctx.gradients = gradients.in_dtype() if any(needed) else None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return *scaled_gradients(gradients, upstream[0]), None, None


class _RowCrossEntropy(torch.autograd.Function):
    """The loss of every row, and its entropy if requested; logits are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.options = options
        shape = (2, len(targets)) if options.with_entropy else (len(targets),)
        results = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        by_kind = results if options.with_entropy else results[None]
        for start in range(0, len(targets), options.chunk_rows):
            chunk = slice(start, start + options.chunk_rows)
            logits, _ = _logits(hidden[chunk], weight, bias, options)
            by_kind[0, chunk], softmax = _losses(logits, targets[chunk], options)
            if options.with_entropy:
                by_kind[1, chunk] = torch.special.entr(softmax).sum(1)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        options: _Options = ctx.options
        gradients = LayerGradients(tuple(ctx.needs_input_grad[:3]), hidden, weight, bias)
        by_kind = upstream[0] if options.with_entropy else upstream[0][None]
        for start in range(0, len(targets), options.chunk_rows):
            chunk = slice(start, start + options.chunk_rows)
            logits, cap = _logits(hidden[chunk], weight, bias, options)
            softmax = _losses(logits, targets[chunk], options)[1]
            terms = torch.special.entr(softmax) if options.with_entropy else None
            if terms is not None:  # the gradient is -p (log p + entropy)
                terms.sub_(softmax * terms.sum(1, keepdim=True)).mul_(by_kind[1, chunk, None])
            of_logits = _logit_gradients(softmax, targets[chunk], options).mul_(by_kind[0, chunk, None])
            if terms is not None:
                of_logits.add_(terms)
            gradients.add(start, _output_gradients(of_logits, cap, options), hidden[chunk], weight)
        return *gradients.in_dtype(), None, None
