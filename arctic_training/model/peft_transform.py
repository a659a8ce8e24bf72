"""Adapters of the PEFT library: LoRA and its kin."""

import warnings
from typing import Any

from torch import nn

from arctic_training.config.base import ComponentConfig
from arctic_training.errors import MissingDependencyError, ModelError
from arctic_training.model.transform import ModelTransform


class PeftConfig(ComponentConfig):
    config: dict[str, Any]
    """``peft_type``, and the fields of that method's config class in PEFT."""


class PeftTransform(ModelTransform):
    """Put an adapter on the model and freeze the rest."""

    name = "peft"
    config_type = PeftConfig

    def __call__(self, model: nn.Module) -> nn.Module:
        """Raises `ModelError` for an unknown method or field, and for targets that match nothing."""
        try:
            import peft
        except ImportError as error:
            raise MissingDependencyError("model.peft_config needs the library peft: pip install peft") from error

        told = dict(self.config.config)
        told.setdefault("task_type", "CAUSAL_LM")
        kind = str(told.pop("peft_type", "")).upper()
        known = sorted(method.value for method in peft.PeftType)
        if kind not in known:
            raise ModelError(f"model.peft_config.peft_type: {kind or 'missing'}; there are: {', '.join(known)}")
        try:
            config = peft.get_peft_config({"peft_type": kind, **told})
            with warnings.catch_warnings():
                # PEFT asks transformers by names of its that have become older
                warnings.simplefilter("ignore", FutureWarning)
                # in the model's own type: DeepSpeed holds all weights in one, and keeps exact copies itself
                adapted: nn.Module = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(f"model.peft_config: {' '.join(str(error).split())}") from error
        return adapted
