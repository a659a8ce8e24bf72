"""Feed-forward networks of a row and a time, with random weights: for diffusion and flow matching."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from arctic_training.config.sections.types import HumanFloat
from arctic_training.model.mlp_factory import ACTIVATIONS, Activation, MLPConfig, MLPFactory
from arctic_training.model.time_embedding import TimeEmbedding


class TimeMLPConfig(MLPConfig):
    """The model section for a feed-forward network of a row and a time."""

    sizes: list[Annotated[int, Field(ge=1)]] = Field(min_length=3)
    """Widths of a row, all its numbers counted, of every hidden layer and of the output."""
    activation: Activation = "silu"
    """The activation after every hidden layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the activations that are zeroed after every hidden layer."""
    time_size: int = Field(default=64, ge=2, multiple_of=2)
    """Length of the embedding of the time."""
    time_scale: HumanFloat = Field(default=1000.0, gt=0)
    """What times, from 0 to 1, are multiplied by before they are embedded; a smaller one makes the network smoother."""
    num_labels: int = Field(default=0, ge=0)
    """Classes that a row may be conditioned on; 0: none."""


class TimeMLP(nn.Module):
    """Maps rows and times to rows: hidden layers whose outputs the time scales and shifts (FiLM, Perez et al. 2018,
    arXiv 1709.07871), and which are added to their inputs where these have as many numbers.

    ``num_labels`` says how many classes it can be conditioned on.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        embedding: TimeEmbedding,
        *,
        embedding_size: int,
        activation: nn.Module,
        dropout: float,
    ) -> None:
        """``sizes`` are the widths of a row, of every hidden layer and of the output."""
        super().__init__()
        self.num_labels = embedding.num_labels
        self.embedding, self.activation, self.dropout = embedding, activation, nn.Dropout(dropout)
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes[:-1]))
        self.films = nn.ModuleList(nn.Linear(embedding_size, 2 * outputs) for outputs in sizes[1:-1])
        self.output = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns ``[N, ...]``, shaped as ``x`` where the output is as wide as a row, else ``[N, width]``.

        ``x`` is ``[N, ...]`` in the dtype of the weights, ``time`` float32 ``[N]`` in [0, 1], and ``labels`` int64
        ``[N]`` from 0 to ``num_labels - 1``, or -100 for no label; None: no row has one.
        """
        condition = nn.functional.silu(self.embedding(time, labels))
        hidden = x.flatten(1)
        for layer, film in zip(self.layers, self.films, strict=True):
            scale, shift = film(condition).chunk(2, dim=1)
            new = self.dropout(self.activation(layer(hidden) * (1 + scale) + shift))
            hidden = hidden + new if hidden.shape == new.shape else new
        outputs: Tensor = self.output(hidden)
        return outputs.reshape(x.shape) if outputs.numel() == x.numel() else outputs


class TimeMLPFactory(MLPFactory):
    """Makes a feed-forward network of a row, a time and, on request, the label of a class."""

    name = "time_mlp"
    config: TimeMLPConfig

    def create_model(self, config: object) -> nn.Module:
        section = self.config
        return TimeMLP(
            section.sizes,
            TimeEmbedding(section.time_size, num_labels=section.num_labels, time_scale=section.time_scale),
            embedding_size=section.time_size,
            activation=ACTIVATIONS[section.activation](),
            dropout=section.dropout,
        )
