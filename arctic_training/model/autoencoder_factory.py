"""Autoencoders: an encoder and a decoder in one module, so that one engine trains both."""

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny, WithJsonSchema, model_validator
from torch import Tensor, nn

from arctic_training.config.sections.component import COMPONENTS, resolve_component
from arctic_training.config.sections.model import DType, ModelConfig
from arctic_training.model.conv_factory import ConvDecoderFactory, ConvFactory
from arctic_training.model.factory import ModelFactory, NetworkFactory
from arctic_training.model.mlp_factory import MLPFactory

_NETWORKS = (MLPFactory, ConvFactory, ConvDecoderFactory)

Network = Annotated[
    SerializeAsAny[ModelConfig],
    BeforeValidator(lambda section: resolve_component(section, _NETWORKS, skip_validation=True)),
    WithJsonSchema({COMPONENTS: ["model_factory"]}),
]
"""The section of a network: any model factory, by default `mlp`."""


class AutoencoderConfig(ModelConfig):
    """The model section for an encoder and a decoder."""

    dtype: DType = "fp32"
    encoder: Network
    """The network of rows to the distributions of their latents: the means of all latents, then the logarithms of
    their variances. Its ``type`` is ``mlp`` by default, ``conv`` for pictures, or a model factory of your own."""
    decoder: Network
    """The network of latents to rows; ``type`` is ``mlp`` by default, or ``conv_decoder`` for pictures."""

    @model_validator(mode="after")
    def _one_dtype(self) -> "AutoencoderConfig":
        for name in ("encoder", "decoder"):
            section: ModelConfig = getattr(self, name)
            if "dtype" in section.model_fields_set and section.dtype != self.dtype:
                raise ValueError(f"{name}: dtype is {section.dtype}, and that of the model is {self.dtype}; remove it")
            section.dtype = self.dtype
        return self


class Autoencoder(nn.Module):
    """An encoder of rows ``[N, ...]`` to ``[N, 2 * L]``, and a decoder of latents ``[N, L]`` to ``[N, ...]``."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, rows: Tensor | None = None, latents: Tensor | None = None) -> Tensor:
        """Returns the encoder's output of ``rows``, or that of the decoder of ``latents``."""
        output: Tensor = self.encoder(rows) if latents is None else self.decoder(latents)
        return output


class AutoencoderFactory(NetworkFactory[AutoencoderConfig]):
    """Makes an encoder and a decoder, each by a model factory of its own."""

    name = "autoencoder"

    def create_model(self, config: object) -> nn.Module:
        return Autoencoder(self._network(self.config.encoder), self._network(self.config.decoder))

    def _network(self, section: ModelConfig) -> nn.Module:
        return ModelFactory[ModelConfig].registered(section.type)(self.trainer, section)()
