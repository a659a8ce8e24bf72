"""Embeddings of a time, and of the label of a class, for the networks of diffusion and flow models."""

import math

import torch
from torch import Tensor, nn

from arctic_training.loss.targets import IGNORE_INDEX

_LONGEST = 10_000
"""The longest period over the shortest, as of the positions of Vaswani et al. 2017 (arXiv 1706.03762)."""


class TimeEmbedding(nn.Module):
    """Embeds a time as sines and cosines (Ho et al. 2020, arXiv 2006.11239, appendix B), with two layers behind them.

    With ``num_labels`` above 0 the embedding of a label is added: a row of a table with one more row for no label.
    """

    def __init__(self, size: int, *, num_labels: int = 0, time_scale: float = 1000.0) -> None:
        """``size`` is that of an embedding. Times are multiplied by ``time_scale``."""
        super().__init__()
        self.time_scale, self.num_labels = time_scale, num_labels
        self.layers = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))
        self.labels = nn.Embedding(num_labels + 1, size) if num_labels else None

    def forward(self, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the embeddings ``[N, size]`` of ``time``, float32 ``[N]`` in [0, 1].

        ``labels`` are int64 ``[N]``, from 0 to ``num_labels - 1``, or -100 for no label; None: no row has one.
        """
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        embedded: Tensor = self.layers(sinusoids(time * self.time_scale, first.in_features).to(first.weight.dtype))
        if self.labels is not None:
            if labels is None:
                labels = torch.full(time.shape, IGNORE_INDEX, device=time.device)
            embedded = embedded + self.labels(labels.masked_fill(labels == IGNORE_INDEX, self.num_labels))
        return embedded


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """Returns cosines and sines of ``positions``, float32 ``[N]``: float32 ``[N, size]``, for an even ``size``.

    Column i of each half has the angular frequency 10000^(-2i / size), as `get_timestep_embedding` of diffusers with
    ``flip_sin_to_cos`` and without shift.
    """
    exponents = torch.arange(size // 2, device=positions.device) * (-2 * math.log(_LONGEST) / size)
    angles = positions.float()[:, None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=1)
