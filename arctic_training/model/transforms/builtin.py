"""Transforms by torch and transformers: activation checkpointing and compilation."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.errors.types import ModelError
from arctic_training.model.transforms.base import ModelTransform

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ActivationCheckpointingConfig(ComponentConfig):
    """Has no keys."""


class ActivationCheckpointing(ModelTransform[ActivationCheckpointingConfig]):
    """Keeps only the input of each layer, and recomputes its activations for the gradient."""

    name = "activation_checkpointing"
    config_type = ActivationCheckpointingConfig

    def __call__(self, model: "PreTrainedModel") -> nn.Module:
        """Raises `ModelError` for a model that does not support it."""
        if not getattr(model, "supports_gradient_checkpointing", hasattr(model, "gradient_checkpointing_enable")):
            raise ModelError(f"{type(model).__name__} cannot checkpoint its activations")
        if hasattr(model, "activation_checkpointing_enable"):  # transformers 5.20 and newer
            model.activation_checkpointing_enable()
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        result: nn.Module = model
        return result


class CompileConfig(ComponentConfig):
    """The keys of `Compile`."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """The mode of `torch.compile`."""
    fullgraph: bool = False
    """Fail for a layer that is not one graph, rather than leave parts of it uncompiled."""


class Compile(ModelTransform[CompileConfig]):
    """Compiles each layer; one graph serves all layers and all lengths."""

    name = "compile"
    config_type = CompileConfig

    def __call__(self, model: nn.Module) -> nn.Module:
        """Raises `ModelError` for a model without a stack of layers."""
        for layer in repeated_layers(model):
            layer.compile(dynamic=True, mode=self.config.mode, fullgraph=self.config.fullgraph)
        # sizes that happen to be equal in the first batch (tokens, documents, heads) are not equal in all of them
        torch.fx.experimental._config.use_duck_shape = False
        # every layer has its own guards on the same code; at the default limit of 8 graphs the rest would run eagerly
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
        return model


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the layers of the longest stack in ``model``. Raises `ModelError` when it has none."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not stacks:
        raise ModelError(f"{type(model).__name__} has no stack of layers to compile")
    longest: nn.ModuleList = sorted(stacks, key=len)[-1]
    return list(longest)
