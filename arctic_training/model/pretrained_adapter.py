"""Reads a folder that PEFT saved as the model that it is: the base that it names, with the adapter merged into it."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from arctic_training.config.checks.sandbox import escapes
from arctic_training.engine.zero import is_partitioned, modified
from arctic_training.errors.types import ModelError
from arctic_training.model.pretrained import Pretrained

_CONFIG = "adapter_config.json"


def is_adapter(name: str) -> bool:
    """Whether ``name`` is a folder with an adapter in it, and no model."""
    folder = os.path.expanduser(name)  # of os, which answers for names that no file can have, too
    return os.path.isfile(os.path.join(folder, _CONFIG)) and not os.path.exists(os.path.join(folder, "config.json"))


def base_of(name: str) -> str:
    """Returns the name or folder of the base of the adapter in the folder ``name``. Raises `ModelError`."""
    folder = Path(name).expanduser()
    try:
        base = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{name}: {_CONFIG} is damaged, or names no base_model_name_or_path") from None
    beside = folder / "base"
    if (beside / "config.json").is_file():
        return str(beside)  # a base of its own, that stays with it wherever the folder is moved to
    if not isinstance(base, str) or not base:
        raise ModelError(f"{name}: {_CONFIG} names no base_model_name_or_path")
    if told := escapes(base) if os.path.exists(os.path.expanduser(base)) else "":
        raise ModelError(f"{name}: the base of the adapter, {told}")
    return base


class PretrainedAdapter(Pretrained):
    """Where an adapter is. ``name`` is the folder that PEFT saved."""

    def __init__(self, name: str, *, trust_remote_code: bool, key: str = "model.name_or_path") -> None:
        try:
            base = base_of(name)
        except ModelError as error:
            raise ModelError(f"{key}: {error}") from error
        super().__init__(base, trust_remote_code=trust_remote_code, key=key)
        self.folder = name

    def config(self, overrides: Mapping[str, Any]) -> tuple[Any, bool]:
        import peft

        try:
            told = peft.PeftConfig.from_pretrained(self.folder)
        except Exception as error:
            raise ModelError(f"{self._said()}: {' '.join(str(error).split())[:300]}") from error
        if told.is_prompt_learning or told.is_adaption_prompt:
            kind = getattr(told.peft_type, "value", told.peft_type)
            raise ModelError(f"{self._said()}: {kind} cannot be merged into its base; name the base")
        return super().config(overrides)

    def skeleton(self, auto_class: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
        model = super().skeleton(auto_class, config, options)
        self._fit(model)
        return model

    def loaded(self, auto_class: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
        model = super().loaded(auto_class, config, options)
        self._fit(model)
        return self._reading(lambda: merged(model, self.folder))

    def _fit(self, model: Any) -> None:
        """Give the base rows for the tokens of the adapter's tokenizer, as PEFT does."""
        from transformers import AutoTokenizer

        if not (Path(self.folder).expanduser() / "tokenizer_config.json").is_file():
            return
        trust = self.options["trust_remote_code"]
        tokens = self._reading(lambda: len(AutoTokenizer.from_pretrained(self.folder, trust_remote_code=trust)))
        if tokens > model.config.get_text_config().vocab_size:
            model.resize_token_embeddings(tokens, mean_resizing=False)

    def _said(self) -> str:
        return f"{self.key}: {self.folder}, an adapter of {self.name}"


def merged(base: nn.Module, folder: str) -> nn.Module:
    """Returns ``base`` with the adapter in ``folder`` added to its weights, layer by layer where they are parted."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted: Any = peft.PeftModel.from_pretrained(base, folder)
        if not is_partitioned(base):
            model: Any = adapted.merge_and_unload()
        else:
            for layer in [one for one in adapted.modules() if hasattr(one, "merge") and hasattr(one, "base_layer")]:
                with modified(layer.parameters()):
                    layer.merge()
            model = adapted.unload()
    model.__dict__.pop("peft_config", None)
    model.requires_grad_(True)
    whole: nn.Module = model
    return whole
