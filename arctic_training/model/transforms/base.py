"""The base of model transforms: adapters, activation checkpointing, compilation."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.registry import Registered


class ModelTransform(Registered, ABC, kind="model_transform"):
    """Changes a model after it is made. The ``transforms`` of a model section name them, in their order."""

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ComponentConfig) -> None:
        self.config: Any = config

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """Returns the model to train, which may be ``model`` itself. Raises `ModelError` when it does not fit."""
