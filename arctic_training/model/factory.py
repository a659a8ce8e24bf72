"""Makes a model. The base of every model factory."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from torch import nn

from arctic_training.callback.hooks import hook
from arctic_training.component import Factory
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.model import ModelConfig
from arctic_training.model.transforms.base import ModelTransform

C = TypeVar("C", bound=ModelConfig)


class ModelFactory(Factory[C, nn.Module], kind="model_factory"):
    """A subclass writes `create_model`, and `create_config` when the model is made from a config."""

    config_type: ClassVar[type[ComponentConfig]] = ModelConfig
    skeleton: nn.Module | None = None
    """The model as it will be trained, without weights, after `check_tokenizer`; None where that tells nothing."""

    def __call__(self, *args: Any) -> nn.Module:
        model = self.create_model(self.create_config())
        for transform in self.transforms:
            model = transform(model)
        return model

    def check(self) -> None:
        """Raises `ModelError` for what can be told of the model before there are a tokenizer and data."""

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises `ModelError` for a tokenizer that does not fit; called after `check`, before there are data."""

    def validate_engine(self, engine: Any) -> None:
        """Raises `ModelError` for what only running the model can tell; called on every process when it has its
        ``engine``, before anything is loaded."""

    @hook("create_config")
    def create_config(self) -> Any:
        """What `create_model` is given; None when the section says everything."""
        return None

    @hook("create_model")
    @abstractmethod
    def create_model(self, config: Any) -> nn.Module:
        """The model in the section's ``dtype``, its weights loaded or drawn."""

    @property
    def transforms(self) -> Sequence[ModelTransform]:
        """What is done to the model after it is made, in this order."""
        return ()
