"""Convolutional networks: their shapes, that a decoder mirrors an encoder, and what a recipe may say."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from arctic_training.config.sections.model import ModelConfig
from arctic_training.model.conv_factory import ConvConfig, ConvDecoderConfig, ConvDecoderFactory, ConvFactory


def build(factory: Any, section: ModelConfig) -> nn.Module:
    network: nn.Module = factory(None, section).create_model(None)
    assert {name: one.shape for name, one in network.named_parameters()} == {
        name: one.shape for name, one in factory(None, section).create_meta_model().named_parameters()
    }
    return network


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize(("shape", "smallest"), [([1, 28, 28], [4, 4]), ([3, 9, 14], [2, 2]), ([2, 1, 5], [1, 1])])
def test_pictures_to_vectors_and_back(shape: list[int], smallest: list[int], kernel_size: int) -> None:
    keys: dict[str, Any] = {"shape": shape, "hidden": [6], "kernel_size": kernel_size}
    encoder = build(ConvFactory, ConvConfig(type="conv", channels=[3, 4, 5], outputs=7, **keys))
    assert encoder[:-4](torch.zeros(2, *shape)).shape == (2, 5, *smallest)  # type: ignore[index]
    assert encoder(torch.zeros(2, *shape)).shape == (2, 7)
    decoder = build(ConvDecoderFactory, ConvDecoderConfig(type="conv_decoder", channels=[5, 4, 3], inputs=7, **keys))
    assert decoder(torch.zeros(2, 7)).shape == (2, *shape)
    assert encoder(torch.zeros(0, *shape)).shape == (0, 7)  # a rank without rows


def test_every_pixel_counts() -> None:
    """No stride passes over a pixel, at the border either, and every pixel is decoded from the latents."""
    torch.manual_seed(0)
    keys: dict[str, Any] = {"shape": [1, 11, 8], "activation": "tanh"}
    encoder = build(ConvFactory, ConvConfig(channels=[3, 4], outputs=1, **keys))
    rows = torch.randn(1, 1, 11, 8, requires_grad=True)
    encoder(rows).sum().backward()
    assert rows.grad is not None and rows.grad.ne(0).all()
    decoder = build(ConvDecoderFactory, ConvDecoderConfig(channels=[4, 3], inputs=2, **keys))
    one, other = decoder(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert one.ne(other).all()


def test_dropout_is_before_linear_layers_alone() -> None:
    section = ConvConfig(shape=[1, 4, 4], channels=[2], hidden=[5], outputs=3, dropout=0.5)
    kinds = [type(layer).__name__ for layer in build(ConvFactory, section).children()]
    assert kinds == ["Conv2d", "ReLU", "Flatten", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kernel_size": 4}, "4 is even, and a kernel with a middle is needed: set 3 or 5"),
        ({"kernel_size": 1}, "greater than or equal to 3"),
        ({"shape": [28, 28]}, "at least 3 items"),
        ({"channels": []}, "at least 1 item"),
        ({"channels": [0]}, "greater than or equal to 1"),
        ({"outputs": 0}, "greater than or equal to 1"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ConvConfig.model_validate({"shape": [1, 28, 28], "channels": [4], "outputs": 2, **keys})
