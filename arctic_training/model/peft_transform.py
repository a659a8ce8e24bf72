"""Adapters of the PEFT library: LoRA and its kin."""

import dataclasses
import warnings
from typing import Any

from torch import nn

from arctic_training.config.base import ComponentConfig
from arctic_training.config.problems import unknown
from arctic_training.errors import MissingDependencyError, ModelError
from arctic_training.model.transform import ModelTransform
from arctic_training.registry import nearest


class PeftConfig(ComponentConfig):
    config: dict[str, Any]
    """``peft_type``, and the fields of that method's config class in PEFT."""


class PeftTransform(ModelTransform):
    """Put an adapter on the model and freeze the rest."""

    name = "peft"
    config_type = PeftConfig

    def __call__(self, model: nn.Module) -> nn.Module:
        """Raises `ModelError` for an unknown method or field, and for targets that match nothing."""
        return self._adapted(model, self._settings())

    @property
    def adds_tokens(self) -> bool:
        """Whether it puts virtual tokens before the others of a row."""
        return bool(self._settings().is_prompt_learning)

    def rehearse(self, skeleton: nn.Module) -> None:
        """The same on a model without weights, as far as the adapter's first weights do not follow from the model's."""
        settings = self._settings()
        if getattr(settings, "init_lora_weights", True) in (True, False, "gaussian"):
            self._adapted(skeleton, settings)

    def _settings(self) -> Any:
        try:
            import peft
        except ImportError as error:
            raise MissingDependencyError("model.peft_config needs the library peft: pip install peft") from error

        told = dict(self.config.config)
        told.setdefault("task_type", "CAUSAL_LM")
        kind = str(told.pop("peft_type", "")).upper()
        known = sorted(method.value for method in peft.PeftType)
        if kind not in known:
            raise ModelError(f"model.peft_config.peft_type: {kind or 'missing'}; {nearest(kind, known)}")
        fields = [field.name for field in dataclasses.fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind])]
        for name in told:
            if name not in fields:
                raise ModelError(f"model.peft_config.{name}: {unknown(name, fields)}")
        try:
            return peft.get_peft_config({"peft_type": kind, **told})
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(f"model.peft_config: {' '.join(str(error).split())}") from error

    def _adapted(self, model: nn.Module, settings: Any) -> nn.Module:
        import peft

        try:
            with warnings.catch_warnings():
                # PEFT asks transformers by names of its that have become older
                warnings.simplefilter("ignore", FutureWarning)
                # in the model's own type: DeepSpeed holds all weights in one, and keeps exact copies itself
                adapted: nn.Module = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(f"model.peft_config: {' '.join(str(error).split())}") from error
        return adapted
