"""The factories of models that a Python program passes to a trainer."""

import functools
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field, model_validator
from torch import nn

from arctic_training.config.checks.problems import Problem
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.passed import OF_FILES, PASSED, PASSED_MODULE
from arctic_training.engine.dtypes import DTYPES
from arctic_training.errors.types import ModelError
from arctic_training.model.factory import ModelFactory
from arctic_training.model.huggingface_config import HFModelConfig
from arctic_training.model.huggingface_factory import HFModelFactory
from arctic_training.model.passed import PassedModel, cast_parameters, require_own_weights
from arctic_training.model.transformers_internals import model_class_of
from arctic_training.model.transforms.peft import PeftTransform

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class PassedModuleConfig(ModelConfig):
    """The model section for a torch module that a program passes."""

    module: Annotated[object, RESUME_SAFE] = Field(default=None, exclude=True, repr=False)
    """The module: ``GANTrainer(config, model=generator, discriminator=discriminator)``, or a model of transformers:
    ``SFTTrainer(config, model=model)``."""
    weights: str = ""
    """A digest of the weights of a frozen model, which no checkpoint holds; the trainer sets it."""

    @model_validator(mode="after")
    def _check_passed(self) -> "PassedModuleConfig":
        if self.module is None:
            raise ValueError("module: no recipe can hold it; pass it in Python: Trainer(config, model=...)")
        return self


class PassedModelConfig(PassedModuleConfig, HFModelConfig):
    """The model section for a model of transformers that a program passes."""

    name_or_path: str = ""
    """The name that the model was loaded by, where the tokenizer is looked for; the trainer sets it."""

    @model_validator(mode="after")
    def _check_keys(self) -> "PassedModelConfig":
        if of_files := next((key for key in OF_FILES if key in self.model_fields_set), None):
            raise ValueError(f"{of_files}: says how a model is loaded, and this one is passed; remove it")
        return self

    def missing_paths(self) -> list[Problem]:
        return []


class PassedModuleFactory(ModelFactory[PassedModuleConfig]):
    """Takes the torch module that a Python program passes, in the dtype of the recipe."""

    name = PASSED_MODULE

    def check(self) -> None:
        """Raises `ModelError` for a module that cannot be trained as it is."""
        require_own_weights(self._module, self.section)

    def create_model(self, config: object) -> nn.Module:
        cast_parameters(self._module, DTYPES[self.config.dtype])
        return self._module

    @property
    def _module(self) -> nn.Module:
        return cast(nn.Module, self.config.module)


class PassedModelFactory(HFModelFactory):
    """Takes the model of transformers that a Python program passes, prepared as if it had been loaded."""

    name = PASSED
    config: PassedModelConfig

    @functools.cached_property
    def pretrained(self) -> PassedModel:
        """The model, in place of the files that it would be loaded from."""
        return PassedModel(cast("PreTrainedModel", self.config.module), key=self.section)

    def check(self) -> None:
        """Raises `ModelError` for a model that cannot be trained as it is, or computes something else."""
        module, config = self.pretrained.module, self.create_config()
        require_own_weights(module, self.section)
        expected = model_class_of(self.auto_class, config)
        if self.task is not None and expected is not None and not isinstance(module, expected):
            raise ModelError(
                f"{self.section}: the passed model is a {type(module).__name__}; expected a {self.task.noun}, "
                f"such as a {expected.__name__}"
            )
        if self.task is not None and self.task.has_labels and config.num_labels != module.config.num_labels:
            raise ModelError(
                f"{self.section}: the passed model has {module.config.num_labels} labels, and {config.num_labels} are "
                "needed"
            )
        super().check()

    def create_model(self, config: "PreTrainedConfig") -> nn.Module:
        self._check_recipe(config)
        return self.pretrained.from_pretrained(self.auto_class, config, self._options(config))

    @functools.cached_property
    def _adapter(self) -> PeftTransform | None:
        adapter = super()._adapter
        if adapter is not None:
            adapter.base_changes.add("weights")  # nobody knows whether its name still loads them
        return adapter

    def _attention(self, config: "PreTrainedConfig") -> str | None:
        own_class = type(self.pretrained.module) is not model_class_of(self.auto_class, config)
        if own_class and self.config.attn_implementation == "auto":
            return None  # its attention may be any
        return super()._attention(config)
