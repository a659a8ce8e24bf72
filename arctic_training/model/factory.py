"""The bases of model factories."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import nn

from arctic_training.callback.hooks import hook
from arctic_training.compatibility.names import rename_method
from arctic_training.component import Factory
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.model import ModelConfig
from arctic_training.engine.engine import Engine
from arctic_training.model.kept_activations import Recomputation
from arctic_training.model.transforms.base import ModelTransform

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

C = TypeVar("C", bound=ModelConfig)


class ModelFactory(Factory[C, nn.Module], kind="model_factory"):
    """Makes the model of a role. A subclass defines `create_model`, and `create_config` if the model has a config."""

    config_type: ClassVar[type[ComponentConfig]] = ModelConfig
    meta_model: nn.Module | None = None
    """After `check_tokenizer` the model as it will be trained, on the meta device; None where it cannot be built so."""

    def __call__(self) -> nn.Module:
        """Returns the model with all transforms applied."""
        model = self.create_model(self.create_config())
        for transform in self.transforms:
            model = transform(model)
        return model

    def __init_subclass__(cls, *, kind: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(kind=kind, **kwargs)
        rename_method(cls, "skeleton", "create_meta_model")

    @property
    def section(self) -> str:
        """The key of the recipe's section of the model."""
        return next((name for name, one in vars(self.trainer.config).items() if one is self.config), "model")

    def create_meta_model(self) -> nn.Module | None:
        """Returns the model as it will be trained, on the meta device, by its config alone; None where it cannot be
        built so. Raises `ModelError`."""
        return None

    @property
    def checkpoints_activations(self) -> bool | None:
        """Returns whether layers are computed again for the gradient; None where the memory they take decides it."""
        return False

    @property
    def recomputation(self) -> Recomputation:
        """Parts that are computed again for the gradient, as far as the recipe says it."""
        return Recomputation()

    def check(self) -> None:
        """Raises `ModelError` for problems that are known before the tokenizer is made and data are prepared."""

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        """Raises `ModelError` for a tokenizer that does not fit; called after `check`, before data are prepared."""

    def validate_engine(self, engine: Engine) -> None:
        """Raises `ModelError` for problems that only a forward pass shows; called on all ranks once ``engine`` is
        built, before a checkpoint is loaded."""

    @hook("create_config")
    def create_config(self) -> "PreTrainedConfig | None":
        """Returns the config for `create_model`, or None when the recipe's section is enough."""
        return None

    @hook("create_model")
    @abstractmethod
    def create_model(self, config: "PreTrainedConfig | None") -> nn.Module:
        """Returns the model in the section's ``dtype``, with its weights loaded or initialised."""

    def make_model_gradient_checkpointing_compatible(self, model: nn.Module) -> nn.Module:
        """Returns ``model`` after it was prepared for recomputed activations; a name of ArcticTraining 0.8."""
        if (enable := getattr(model, "enable_input_require_grads", None)) is not None:
            enable()
        return model

    @property
    def transforms(self) -> Sequence[ModelTransform[Any]]:
        """The transforms applied to the model after it is made, in this order."""
        return ()


class NetworkFactory(ModelFactory[C]):
    """Makes a network with random weights by the recipe's section alone: it has no config, and no files."""

    def check(self) -> None:
        """Builds the network on the meta device, for the checks of the trainer."""
        self.meta_model = self.create_meta_model()

    def create_meta_model(self) -> nn.Module:
        with torch.device("meta"):
            return self.create_model(None)
