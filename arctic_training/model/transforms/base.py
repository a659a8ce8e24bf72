"""Something that is done to a model after it is made: adapters, activation checkpointing, compilation."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.registry import Registered


class ModelTransform(Registered, ABC, kind="model_transform"):
    """Named in the ``transforms`` of a model section, where they are applied in the recipe's order."""

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ComponentConfig) -> None:
        self.config: Any = config

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """The model to train in place of ``model``, which may be changed. Raises `ModelError` when it does not fit."""
