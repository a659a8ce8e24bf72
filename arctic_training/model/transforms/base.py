"""The base of model transforms: adapters, activation checkpointing, compilation."""

from abc import ABC, abstractmethod

from torch import nn

from arctic_training.config.sections.base import C
from arctic_training.config.sections.component import Configured


class ModelTransform(Configured[C], ABC, kind="model_transform"):
    """Changes a model after it is made. The ``transforms`` of a model section name them, in their order."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """Returns the model to train, which may be ``model`` itself. Raises `ModelError` when it does not fit."""
