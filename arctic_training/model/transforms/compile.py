"""Compilation of layers by torch."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.errors.types import ModelError
from arctic_training.model.transforms.base import ModelTransform


class CompileConfig(ComponentConfig):
    """The keys of `Compile`."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """The mode of `torch.compile`."""
    fullgraph: bool = False
    """Fail for a layer that is not one graph, rather than leave parts of it uncompiled."""


class Compile(ModelTransform[CompileConfig]):
    """Compiles each layer; one graph serves all layers and all lengths."""

    name = "compile"

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
    """Returns the layers of the longest stack in ``model`` that is in no other. Raises `ModelError` without one."""
    stacks = [list(stack) for stack in _stacks(model) if len(stack)]
    if not stacks:
        raise ModelError(f"{type(model).__name__} has no stack of layers")
    return sorted(stacks, key=len)[-1]


def _stacks(module: nn.Module) -> Iterator[nn.ModuleList]:
    if isinstance(module, nn.ModuleList):
        yield module
    else:
        for child in module.children():
            yield from _stacks(child)
