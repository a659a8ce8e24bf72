"""Shared part of losses of a linear output layer: the map to logits, chunks of rows, gradients added by chunk.

Chunks keep all logits from being in memory at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# logits of a chunk: few enough for a CPU's cache, enough to keep a GPU busy
_CHUNK_LOGITS = {"cpu": 1 << 22, "gpu": 1 << 26}
_MIN_CHUNK_ROWS = {"cpu": 128, "gpu": 1024}


@dataclass(frozen=True)
class LogitMap:
    """The map from the outputs x of a model's last linear layer to logits: ``softcap * tanh(scale * x / softcap)``,
    divided by a temperature."""

    scale: float = 1.0
    softcap: float | None = None
    """None: no cap, and the map is ``scale * x / temperature``."""
    temperature: float = 1.0
    """Divides the logits."""

    @property
    def slope(self) -> float:
        """The derivative of the map at 0."""
        return self.scale / self.temperature

    def __call__(self, outputs: Tensor) -> Tensor:
        """Returns the logits of the layer's outputs ``[...]``, of the same dtype."""
        if self.softcap is not None:
            return (outputs * (self.scale / self.softcap)).tanh() * (self.softcap / self.temperature)
        return outputs * self.slope if self.slope != 1.0 else outputs


PLAIN = LogitMap()


def rows_per_chunk(device: str, vocabulary: int) -> int:
    """Returns how many rows of logits are computed at once on a kind of ``device``."""
    kind = "cpu" if device == "cpu" else "gpu"
    return max(_MIN_CHUNK_ROWS[kind], _CHUNK_LOGITS[kind] // vocabulary)


class LayerGradients:
    """The gradients of hidden states, weight and bias, as far as needed, accumulated chunk by chunk."""

    def __init__(self, needed: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        # many small terms added in 16 bits would be lost
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if needed[2] and bias is not None else None
        self._weight_type, self._bias_type = weight.dtype, None if bias is None else bias.dtype

    def add(self, start: int, outputs: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Adds a chunk: ``outputs`` ``[rows, vocabulary]`` are the gradients of the rows from ``start`` on."""
        low = outputs.to(hidden.dtype)
        if self.hidden is not None:
            torch.mm(low, weight, out=self.hidden[start : start + len(hidden)])
        if self.weight is not None:
            if low.dtype == torch.float32:
                self.weight.addmm_(low.t(), hidden)
            else:
                self.weight += torch.mm(low.t(), hidden)
        if self.bias is not None:
            self.bias += outputs.sum(0)

    def in_dtype(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the gradients of hidden states ``[rows, width]``, weight ``[vocabulary, width]`` and bias
        ``[vocabulary]``, each in its own dtype, or None."""
        weight = None if self.weight is None else self.weight.to(self._weight_type)
        return self.hidden, weight, None if self.bias is None else self.bias.to(self._bias_type)


def scaled_gradients(gradients: Sequence[Tensor | None] | None, upstream: Tensor) -> list[Tensor | None]:
    """Returns ``gradients`` times ``upstream``, a scalar ``[]``, in their own memory: the weight's is as large as the
    weight. Raises RuntimeError for None: a backward pass has taken them already."""
    if gradients is None:
        raise RuntimeError("the gradients of this loss were taken already; compute the loss again")
    return [None if one is None else one.mul_(upstream.to(one.dtype)) for one in gradients]
