"""Cross-entropy of a linear layer's outputs, a few rows at a time: ``[rows, vocabulary]`` never exists as a whole."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# logits held at a time: small enough for a CPU's cache, large enough to keep a GPU busy
_HELD = {"cpu": 1 << 22}
_HELD_ELSEWHERE = 1 << 26
_FEWEST_ROWS = {"cpu": 128}
_FEWEST_ROWS_ELSEWHERE = 1024


@dataclass(frozen=True)
class LogitMap:
    """What becomes of the outputs of a model's last linear layer: ``softcap * tanh(scale * x / softcap)``, over a
    temperature."""

    scale: float = 1.0
    softcap: float | None = None
    """None: no cap, and the map is ``scale * x``."""
    temperature: float = 1.0
    """What they are divided by at last."""

    @property
    def slope(self) -> float:
        """How fast the map rises at 0."""
        return self.scale / self.temperature


PLAIN = LogitMap()


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
) -> Tensor:
    """``cross_entropy(logit_map(hidden @ weight.T + bias), targets)`` in fp32: a scalar, or ``[rows]`` in nats.

    ``hidden`` is ``[rows, width]``, ``weight`` ``[vocabulary, width]``, ``targets`` ``[rows]`` of class numbers; none
    is left out. ``label_smoothing`` is that of `torch.nn.functional.cross_entropy`.

    For the sum, gradients are made together with the loss, since every row's counts alike: no logits are computed
    twice (Hsu et al. 2024, arXiv 2410.10989, section 3.2). For single rows they are computed again in the backward
    pass; so they are in fp16, which would overflow before the loss scale, known only there, could keep it from that.
    Gradients can be taken once, and not be differentiated. Without rows the sum is 0, with gradients of 0.
    """
    if hidden.shape[0] != targets.shape[0] or hidden.shape[-1] != weight.shape[-1]:
        shapes = f"{tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"hidden, weight and targets have shapes {shapes}, not [n, h], [v, h] and [n]")
    rows = chunk_rows or _rows(hidden.device.type, weight.shape[0])
    how = _How(label_smoothing, logit_map, rows, torch.is_grad_enabled())
    early = reduction == "sum" and hidden.dtype != torch.float16
    losses: Tensor = (_Summed if early else _Single).apply(hidden, weight, bias, targets, how)  # type: ignore[no-untyped-call]
    return losses.sum() if reduction == "sum" and not early else losses


def logits_cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of every row of ``logits`` ``[rows, vocabulary]`` in fp32, ``[rows]`` in nats."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)


@dataclass(frozen=True)
class _How:
    smoothing: float
    map: LogitMap
    rows: int
    learns: bool
    """Whether gradients are recorded; inside a function's forward torch does not tell."""


def _rows(device: str, vocabulary: int) -> int:
    fewest = _FEWEST_ROWS.get(device, _FEWEST_ROWS_ELSEWHERE)
    return max(fewest, _HELD.get(device, _HELD_ELSEWHERE) // vocabulary)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> tuple[Tensor, Tensor | None]:
    """The mapped logits of some rows in fp32, which may be written to, and the slope of the cap if there is one."""
    logits = torch.mm(hidden, weight.t()) if bias is None else torch.addmm(bias, hidden, weight.t())
    logits = logits.float()
    if how.map.softcap is None:
        return (logits.mul_(how.map.slope) if how.map.slope != 1.0 else logits), None
    capped = logits.mul_(how.map.scale / how.map.softcap).tanh_()
    slope = 1 - capped.square()
    return capped.mul_(how.map.softcap / how.map.temperature), slope


def _losses(logits: Tensor, targets: Tensor, how: _How) -> tuple[Tensor, Tensor]:
    """Every row's loss, and the softmax of ``logits``, which are overwritten."""
    chosen = logits.gather(1, targets[:, None])
    if how.smoothing:
        chosen = (1 - how.smoothing) * chosen + how.smoothing * logits.mean(1, keepdim=True)
    highest = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(highest).exp_()
    total = exponentials.sum(1, keepdim=True)
    return (total.log() + highest - chosen)[:, 0], exponentials.div_(total)


def _slopes(softmax: Tensor, targets: Tensor, cap: Tensor | None, how: _How) -> Tensor:
    """The gradient of every row's loss in what the linear layer gave; overwrites ``softmax``."""
    slopes = softmax.sub_(how.smoothing / softmax.shape[1]) if how.smoothing else softmax
    share = torch.full_like(slopes[:, :1], how.smoothing - 1)
    slopes.scatter_add_(1, targets[:, None], share)
    if cap is not None:
        slopes.mul_(cap)
    return slopes.mul_(how.map.slope) if how.map.slope != 1.0 else slopes


class _Gradients:
    """The gradients of hidden states, weight and bias, as far as they are wanted, put together chunk by chunk."""

    def __init__(self, wanted: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        # many small sums in 16 bits would lose most of what they add up
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] and bias is not None else None
        self._weight_type, self._bias_type = weight.dtype, None if bias is None else bias.dtype

    def add(self, start: int, slopes: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """``slopes`` ``[rows, vocabulary]`` of the rows from ``start`` on, whose hidden states are ``hidden``."""
        low = slopes.to(hidden.dtype)
        if self.hidden is not None:
            torch.mm(low, weight, out=self.hidden[start : start + len(hidden)])
        if self.weight is not None:
            if low.dtype == torch.float32:
                self.weight.addmm_(low.t(), hidden)
            else:
                self.weight += torch.mm(low.t(), hidden)
        if self.bias is not None:
            self.bias += slopes.sum(0)

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight = None if self.weight is None else self.weight.to(self._weight_type)
        return self.hidden, weight, None if self.bias is None else self.bias.to(self._bias_type)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: _How) -> Tensor:
        wanted = tuple(how.learns and need for need in ctx.needs_input_grad[:3])
        gradients = _Gradients(wanted, hidden, weight, bias)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), how.rows):
            rows, aims = hidden[start : start + how.rows], targets[start : start + how.rows]
            logits, cap = _logits(rows, weight, bias, how)
            losses, softmax = _losses(logits, aims, how)
            total += losses.sum()
            if any(wanted):
                gradients.add(start, _slopes(softmax, aims, cap, how), rows, weight)
        ctx.gradients = gradients.finish() if any(wanted) else None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were taken already; compute the loss again")
        # in place: the weight's is as large as the weight
        scaled = [None if one is None else one.mul_(upstream[0].to(one.dtype)) for one in gradients]
        return *scaled, None, None


class _Single(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: _How) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.how = how
        found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), how.rows):
            logits, _ = _logits(hidden[start : start + how.rows], weight, bias, how)
            found[start : start + how.rows] = _losses(logits, targets[start : start + how.rows], how)[0]
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        hidden, weight, bias, targets = ctx.saved_tensors
        how: _How = ctx.how
        gradients = _Gradients(tuple(ctx.needs_input_grad[:3]), hidden, weight, bias)
        for start in range(0, len(targets), how.rows):
            rows, aims = hidden[start : start + how.rows], targets[start : start + how.rows]
            logits, cap = _logits(rows, weight, bias, how)
            slopes = _slopes(_losses(logits, aims, how)[1], aims, cap, how)
            slopes.mul_(upstream[0][start : start + how.rows, None])
            gradients.add(start, slopes, rows, weight)
        return *gradients.finish(), None, None
