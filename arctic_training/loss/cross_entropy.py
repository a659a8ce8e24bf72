"""Cross-entropy of a linear head, without ever holding the logits of all targets."""

from typing import Any

import torch

_CHUNK_BYTES = 32 * 2**20


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "none",
) -> torch.Tensor:
    """Cross-entropy of ``hidden @ weight.T + bias`` against ``targets``, in fp32 whatever the inputs are.

    ``hidden`` is [N, H], ``weight`` [V, H], ``targets`` [N] in [0, V), ``bias`` [V]. Returns [N], or their sum with
    ``reduction="sum"``, which is the faster: its gradient is taken while the logits are there, and the other computes
    them again. With ``label_smoothing`` e the target has probability 1 - e + e / V and each other one e / V
    (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    """
    if reduction == "sum":
        total: torch.Tensor = _Sum.apply(hidden, weight, bias, targets, label_smoothing)  # type: ignore[no-untyped-call]
        return total
    if reduction != "none":
        raise ValueError(f"reduction is none or sum, not {reduction!r}")
    each: torch.Tensor = _Each.apply(hidden, weight, bias, targets, label_smoothing)  # type: ignore[no-untyped-call]
    return each


def _chunks(count: int, vocabulary: int) -> list[slice]:
    rows = max(64, _CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def _losses(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of fp32 ``logits`` and the logarithm of each row's normalizer."""
    normalizer = torch.logsumexp(logits, dim=-1)
    losses = normalizer - logits.gather(1, targets[:, None])[:, 0]
    if smoothing:
        losses = (1 - smoothing) * losses + smoothing * (normalizer - logits.mean(dim=-1))
    return losses, normalizer


def _slope(
    logits: torch.Tensor, normalizer: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """The derivative of each row's loss with respect to its logits, written over ``logits``."""
    slope = logits.sub_(normalizer[:, None]).exp_()
    if smoothing:
        slope -= smoothing / logits.shape[1]
    slope.scatter_add_(1, targets[:, None], slope.new_full((len(targets), 1), smoothing - 1))
    return slope


class _Gradients:
    """Sums the gradients of the chunks; those of weight and bias in fp32, so that many small ones do not get lost."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, needs: Any) -> None:
        self.source, self.matrix = hidden, weight
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs[2] else None

    def add(self, chunk: slice, slope: torch.Tensor) -> None:
        if self.bias is not None:
            self.bias += slope.sum(0)
        slope = slope.to(self.matrix.dtype)
        if self.hidden is not None:
            torch.mm(slope, self.matrix, out=self.hidden[chunk])
        if self.weight is not None:
            if self.weight.dtype == slope.dtype:
                self.weight.addmm_(slope.T, self.source[chunk])
            else:
                self.weight += slope.T @ self.source[chunk]


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(hidden, weight, bias).float()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        smoothing: float,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        for chunk in _chunks(len(hidden), len(weight)):
            logits = _logits(hidden[chunk], weight, bias)
            losses, normalizer = _losses(logits, targets[chunk], smoothing)
            total += losses.sum()
            if any(ctx.needs_input_grad):
                gradients.add(chunk, _slope(logits, normalizer, targets[chunk], smoothing))
        ctx.gradients, ctx.dtypes = gradients, (hidden.dtype, weight.dtype, bias.dtype if bias is not None else None)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,) = grads
        found = ctx.gradients
        parts = zip((found.hidden, found.weight, found.bias), ctx.dtypes, strict=True)
        # a new tensor each time: backward may run twice on a retained graph
        scaled = [None if part is None else (part * grad).to(dtype) for part, dtype in parts]
        return (*scaled, None, None)


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        smoothing: float,
    ) -> torch.Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for chunk in _chunks(len(hidden), len(weight)):
            losses[chunk] = _losses(_logits(hidden[chunk], weight, bias), targets[chunk], smoothing)[0]
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.smoothing = smoothing
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden, weight, bias, targets = ctx.saved_tensors
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        for chunk in _chunks(len(hidden), len(weight)):
            logits = _logits(hidden[chunk], weight, bias)
            normalizer = torch.logsumexp(logits, dim=-1)
            slope = _slope(logits, normalizer, targets[chunk], ctx.smoothing)
            gradients.add(chunk, slope.mul_(grads[0][chunk, None]))
        found = (gradients.hidden, gradients.weight, gradients.bias)
        tensors = (hidden, weight, bias)
        return (*(g if g is None else g.to(t.dtype) for g, t in zip(found, tensors, strict=True)), None, None)
