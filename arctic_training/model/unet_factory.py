"""Small U-Nets of an image and a time, with random weights: for diffusion and flow matching."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from arctic_training.config.sections.model import DType, ModelConfig
from arctic_training.model.factory import NetworkFactory
from arctic_training.model.time_embedding import TimeEmbedding


class UNetConfig(ModelConfig):
    """The model section for a U-Net."""

    dtype: DType = "fp32"
    channels: int = Field(default=1, ge=1)
    """Channels of an image; rows of one channel may be images without a dimension for it."""
    widths: list[Annotated[int, Field(ge=1)]] = Field(default=[32, 64], min_length=1)
    """Channels inside at each resolution, each of which has half the height and width of the one before."""
    blocks: int = Field(default=1, ge=1)
    """Residual blocks of each resolution on the way down, and as many on the way up."""
    groups: int = Field(default=8, ge=1)
    """Groups of channels that are normalized together; a divisor of every width."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the activations that are zeroed inside every residual block."""
    time_size: int = Field(default=64, ge=2, multiple_of=2)
    """Length of the embedding of the time."""
    num_labels: int = Field(default=0, ge=0)
    """Classes that a row may be conditioned on; 0: none."""

    @model_validator(mode="after")
    def _check_groups(self) -> "UNetConfig":
        if odd := next((width for width in self.widths if width % self.groups), None):
            raise ValueError(f"groups: {self.groups} is no divisor of the width {odd}")
        return self


class ResidualBlock(nn.Module):
    """Two convolutions of normalized inputs, between which the time scales and shifts (Nichol and Dhariwal 2021,
    arXiv 2102.09672, section 3); the second one starts at zero."""

    def __init__(self, inputs: int, outputs: int, *, time_size: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.first_norm, self.first = nn.GroupNorm(groups, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(time_size, 2 * outputs)
        self.second_norm, self.second = nn.GroupNorm(groups, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        """Returns ``[N, outputs, H, W]`` of ``images`` ``[N, inputs, H, W]`` and ``condition`` ``[N, time_size]``."""
        hidden = self.first(F.silu(self.first_norm(images)))
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = F.silu(self.second_norm(hidden) * (1 + scale) + shift)
        output: Tensor = self.skip(images) + self.second(self.dropout(hidden))
        return output


class UNet(nn.Module):
    """Maps images and times to images: residual blocks at falling resolutions and back, each of those on the way up
    with the output of its counterpart on the way down (Ronneberger et al. 2015, arXiv 1505.04597).

    ``num_labels`` says how many classes it can be conditioned on.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        embedding: TimeEmbedding,
        *,
        blocks: int,
        time_size: int,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, time_size=time_size, groups=groups, dropout=dropout)

        self.num_labels, self.embedding = embedding.num_labels, embedding
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for number, width in enumerate(widths):
            if number:
                self.down.append(nn.Conv2d(before, before, 3, stride=2, padding=1))
            self.down.extend(block(before if n == 0 else width, width) for n in range(blocks))
            before = width
        self.middle = block(before, before)
        for width in reversed(widths):
            self.up.extend(block((before if n == 0 else width) + width, width) for n in range(blocks))
            before = width
        self.last_norm, self.last = nn.GroupNorm(groups, before), nn.Conv2d(before, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns a tensor shaped as ``x``, images ``[N, C, H, W]`` or ``[N, H, W]`` in the dtype of the weights.

        ``time`` is float32 ``[N]`` in [0, 1], and ``labels`` int64 ``[N]`` from 0 to ``num_labels - 1``, or -100 for no
        label; None: no row has one.
        """
        condition = F.silu(self.embedding(time, labels))
        hidden = self.first(x[:, None] if x.dim() == 3 else x)
        outputs: list[Tensor] = []
        for part in self.down:
            if isinstance(part, ResidualBlock):
                hidden = part(hidden, condition)
                outputs.append(hidden)
            else:
                hidden = part(hidden)
        hidden = self.middle(hidden, condition)
        for block in self.up:
            output = outputs.pop()
            if hidden.shape[2:] != output.shape[2:]:
                hidden = F.interpolate(hidden, size=output.shape[2:])
            hidden = block(torch.cat([hidden, output], dim=1), condition)
        images: Tensor = self.last(F.silu(self.last_norm(hidden)))
        return images.reshape(x.shape)


class UNetFactory(NetworkFactory[UNetConfig]):
    """Makes a small U-Net of an image, a time and, on request, the label of a class."""

    name = "unet"

    def create_model(self, config: object) -> nn.Module:
        section = self.config
        return UNet(
            section.channels,
            section.widths,
            TimeEmbedding(section.time_size, num_labels=section.num_labels),
            blocks=section.blocks,
            time_size=section.time_size,
            groups=section.groups,
            dropout=section.dropout,
        )
