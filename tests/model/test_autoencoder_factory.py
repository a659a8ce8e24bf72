"""Autoencoders: any two networks in one module, and what a recipe may say."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from arctic_training.model.autoencoder_factory import AutoencoderConfig, AutoencoderFactory

ENCODER: dict[str, Any] = {"sizes": [4, 6]}
DECODER: dict[str, Any] = {"type": "conv_decoder", "shape": [1, 2, 2], "channels": [2], "inputs": 3}


def test_an_autoencoder_of_any_two_networks() -> None:
    config = AutoencoderConfig.model_validate({"encoder": ENCODER, "decoder": DECODER, "dtype": "bf16"})
    assert (config.encoder.type, config.encoder.dtype, config.decoder.dtype) == ("mlp", "bf16", "bf16")
    assert AutoencoderConfig.model_validate(config.model_dump()) == config
    network = AutoencoderFactory(None, config)()  # type: ignore[arg-type]
    assert network(rows=torch.zeros(5, 4)).shape == (5, 6)
    assert network(latents=torch.zeros(5, 3)).shape == (5, 1, 2, 2)
    assert [name for name, _ in network.named_parameters()] == [
        name
        for name, _ in AutoencoderFactory(None, config).create_meta_model().named_parameters()  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"encoder": {"type": "conf", "sizes": [4, 6]}}, "did you mean 'conv'"),
        ({"encoder": {"sizes": [4]}}, "at least 2 items"),
        ({"encoder": {**ENCODER, "dtype": "bf16"}}, "encoder: dtype is bf16, and that of the model is fp32; remove it"),
        ({"decoder": None}, "sizes"),
    ],
)
def test_refusals_of_an_autoencoder(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AutoencoderConfig.model_validate({"encoder": ENCODER, "decoder": DECODER, **keys})
