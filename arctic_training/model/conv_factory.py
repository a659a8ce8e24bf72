"""Convolutional networks with random weights: of pictures to vectors, and of vectors to pictures."""

from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator
from torch import nn

from arctic_training.config.sections.model import DType, ModelConfig
from arctic_training.model.factory import NetworkFactory
from arctic_training.model.mlp_factory import ACTIVATIONS, Activation, linear_layers

Size = Annotated[int, Field(ge=1)]


class PictureNetworkConfig(ModelConfig):
    """Keys of both kinds of convolutional networks."""

    dtype: DType = "fp32"
    shape: list[Size] = Field(min_length=3, max_length=3)
    """Channels, height and width of a picture."""
    channels: list[Size] = Field(min_length=1)
    """Channels of the feature maps, in the order in which they are computed; each has half the height and width of the
    next larger one, rounded up."""
    kernel_size: int = Field(default=3, ge=3)
    """Height and width of every kernel; an odd number."""
    hidden: list[Size] = []
    """Widths of the linear layers between the vector and the smallest feature map."""
    activation: Activation = "relu"
    """The activation after every layer but the last."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the activations that are zeroed before they enter a linear layer."""

    @field_validator("kernel_size")
    @classmethod
    def _check_kernel(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError(f"{size} is even, and a kernel with a middle is needed: set {size - 1} or {size + 1}")
        return size

    @property
    def halves(self) -> list[list[int]]:
        """Height and width of the picture and of every feature map, from large to small."""
        halves = [self.shape[1:]]
        for _ in self.channels:
            halves.append([-(-length // 2) for length in halves[-1]])
        return halves


class ConvConfig(PictureNetworkConfig):
    """The model section for a network of pictures to vectors."""

    outputs: Size
    """Numbers that the network computes of a picture: classes, or for the encoder of a `vae` two for each latent."""


class ConvFactory(NetworkFactory[ConvConfig]):
    """Makes a convolutional network of pictures to vectors.

    Pictures are ``[N, channels, height, width]``, and vectors ``[N, outputs]``.
    """

    name = "conv"

    def create_model(self, config: object) -> nn.Module:
        section, size = self.config, self.config.kernel_size
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([section.shape[0], *section.channels]):
            layers += [nn.Conv2d(inputs, outputs, size, 2, size // 2), ACTIVATIONS[section.activation]()]
        height, width = section.halves[-1]
        layers += [nn.Flatten(), *([nn.Dropout(section.dropout)] if section.dropout else [])]
        sizes = [section.channels[-1] * height * width, *section.hidden, section.outputs]
        return nn.Sequential(*layers, *linear_layers(sizes, section.activation, section.dropout))


class ConvDecoderConfig(PictureNetworkConfig):
    """The model section for a network of vectors to pictures."""

    inputs: Size
    """Length of a vector, such as the latents of a `vae` or of a generator."""


class ConvDecoderFactory(NetworkFactory[ConvDecoderConfig]):
    """Makes a network of vectors to pictures, by transposed convolutions.

    Vectors are ``[N, inputs]``, and pictures ``[N, channels, height, width]``.
    """

    name = "conv_decoder"

    def create_model(self, config: object) -> nn.Module:
        section = self.config
        *larger, smallest = section.halves
        channels, size = section.channels, section.kernel_size
        sizes = [section.inputs, *section.hidden, channels[0] * smallest[0] * smallest[1]]
        layers = [*linear_layers(sizes, section.activation, section.dropout), nn.Unflatten(1, (channels[0], *smallest))]
        for (inputs, outputs), shape in zip(pairwise([*channels, section.shape[0]]), reversed(larger), strict=True):
            # a map of 14 rows becomes one of 27 or 28: the output padding decides
            padding = [1 - length % 2 for length in shape]
            layers.append(ACTIVATIONS[section.activation]())
            layers.append(nn.ConvTranspose2d(inputs, outputs, size, 2, size // 2, (padding[0], padding[1])))
        return nn.Sequential(*layers)
