"""The sum of any loss of rows of logits, which are computed a few rows at a time and never kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arctic_training.loss.output_layer import PLAIN, LayerGradients, LogitMap, rows_per_chunk, scaled_gradients

RowLosses = Callable[[Tensor, slice], Tensor]
"""Returns the losses ``[n]`` of the logits ``[n, vocabulary]`` (fp32) of the rows that the slice selects."""


def sum_layer_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    function: RowLosses,
    *,
    logit_map: LogitMap = PLAIN,
    chunk_rows: int | None = None,
) -> Tensor:
    """Returns the sum of ``function(logits, rows)`` over the rows of ``hidden``, fp32 ``[]``.

    ``hidden`` is ``[rows, width]``, ``weight`` ``[vocabulary, width]`` and ``bias`` ``[vocabulary]``; the logits are
    ``logit_map(hidden @ weight.T + bias)``. Gradients of the three are computed together with the loss, chunk by chunk,
    by autograd through ``function``; what else it is computed from gets none. They can be taken once, and not be
    differentiated. Without rows the sum is 0, with gradients of 0.
    """
    if hidden.dtype == torch.float16:  # whose gradients would overflow without the loss scale, known in backward only
        hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
    rows = chunk_rows or rows_per_chunk(hidden.device.type, weight.shape[0])
    options = _Options(function, logit_map, rows, torch.is_grad_enabled())
    total: Tensor = _SummedLosses.apply(hidden, weight, bias, options)  # type: ignore[no-untyped-call]
    return total


@dataclass(frozen=True)
class _Options:
    function: RowLosses
    map: LogitMap
    chunk_rows: int
    grad_enabled: bool


class _SummedLosses(torch.autograd.Function):
    """The sum; its gradients are computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, options: _Options) -> Tensor:
        needed = tuple(options.grad_enabled and need for need in ctx.needs_input_grad[:3])
        gradients = LayerGradients(needed, hidden, weight, bias)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), options.chunk_rows):
            rows = slice(start, min(start + options.chunk_rows, len(hidden)))
            outputs = torch.nn.functional.linear(hidden[rows], weight, bias).float()
            with torch.set_grad_enabled(any(needed)):
                losses = options.function(options.map(outputs.requires_grad_(any(needed))), rows)
                loss = losses.float().sum()
            total += loss.detach()
            if any(needed):
                (of_outputs,) = torch.autograd.grad(loss, outputs)
                gradients.add(start, of_outputs, hidden[rows], weight)
        ctx.gradients = gradients.in_dtype() if any(needed) else None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return *scaled_gradients(gradients, upstream[0]), None
