"""The base of model transforms: adapters, activation checkpointing, compilation."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from torch import nn

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.registry import Registered

C = TypeVar("C", bound=ComponentConfig)


class ModelTransform(Registered, ABC, Generic[C], kind="model_transform"):
    """Changes a model after it is made. The ``transforms`` of a model section name them, in their order."""

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: C) -> None:
        self.config = config

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """Returns the model to train, which may be ``model`` itself. Raises `ModelError` when it does not fit."""
