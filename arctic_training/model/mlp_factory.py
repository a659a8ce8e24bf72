"""Plain feed-forward networks with random weights."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from arctic_training.config.sections.model import DType, ModelConfig
from arctic_training.model.factory import NetworkFactory

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "tanh"]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class MLPConfig(ModelConfig):
    """The model section for a feed-forward network."""

    dtype: DType = "fp32"
    sizes: list[Annotated[int, Field(ge=1)]] = Field(min_length=2)
    """Widths of the input, of every hidden layer and of the output."""
    activation: Activation = "relu"
    """The activation after every layer but the last."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the activations that are zeroed after every layer but the last."""

    @property
    def outputs(self) -> int:
        """Numbers that the network computes of a row."""
        return self.sizes[-1]


class MLPFactory(NetworkFactory[MLPConfig]):
    """Makes a stack of linear layers with activations between them."""

    name = "mlp"

    def create_model(self, config: object) -> nn.Module:
        return nn.Sequential(*linear_layers(self.config.sizes, self.config.activation, self.config.dropout))


def linear_layers(sizes: Sequence[int], activation: Activation, dropout: float) -> list[nn.Module]:
    """Returns linear layers from each width of ``sizes`` to the next, with activation and dropout between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    while not isinstance(layers[-1], nn.Linear):
        layers.pop()
    return layers
