"""Loads a folder that PEFT saved as a plain model: the base that it names, with the adapter merged into it."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from arctic_training.checkpoint.saved_model import ADAPTER
from arctic_training.config.checks.files import outside_root
from arctic_training.engine.zero import gathered, is_partitioned
from arctic_training.errors.types import ModelError
from arctic_training.model.pretrained import Pretrained

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass


def base_of(name: str) -> str:
    """Returns the name or folder of the base of the adapter in the folder ``name``. Raises `ModelError`."""
    folder = Path(name).expanduser()
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{name}: {ADAPTER} is damaged, or names no base_model_name_or_path") from None
    own_base = folder / "base"
    if (own_base / "config.json").is_file():
        return str(own_base)  # it stays with the adapter wherever the folder is moved to
    if not isinstance(base, str) or not base:
        raise ModelError(f"{name}: {ADAPTER} names no base_model_name_or_path")
    if problem := outside_root(base) if os.path.exists(os.path.expanduser(base)) else "":
        raise ModelError(f"{name}: the base of the adapter, {problem}")
    return base


class PretrainedAdapter(Pretrained):
    """A model with an adapter of PEFT merged into it. ``name`` is the folder of the adapter."""

    def __init__(self, name: str, *, trust_remote_code: bool, key: str = "model.name_or_path") -> None:
        """Raises `ModelError` for a damaged adapter config, or one that names no base."""
        try:
            base = base_of(name)
        except ModelError as error:
            raise ModelError(f"{key}: {error}") from error
        super().__init__(base, trust_remote_code=trust_remote_code, key=key)
        self.folder = name

    def config(self, overrides: Mapping[str, Any]) -> tuple[Any, bool]:
        import peft

        try:
            adapter = peft.PeftConfig.from_pretrained(self.folder)
        except Exception as error:
            raise ModelError(f"{self._label()}: {' '.join(str(error).split())[:300]}") from error
        if adapter.is_prompt_learning or adapter.is_adaption_prompt:
            method = getattr(adapter.peft_type, "value", adapter.peft_type)
            raise ModelError(f"{self._label()}: {method} cannot be merged into its base; name the base")
        return super().config(overrides)

    def on_meta_device(
        self, auto_class: type["_BaseAutoModelClass"], config: "PreTrainedConfig", options: Mapping[str, Any]
    ) -> nn.Module:
        model = super().on_meta_device(auto_class, config, options)
        self._resize_embeddings(model)
        return model

    def from_pretrained(
        self, auto_class: type["_BaseAutoModelClass"], config: "PreTrainedConfig", options: Mapping[str, Any]
    ) -> nn.Module:
        model = super().from_pretrained(auto_class, config, options)
        self._resize_embeddings(model)
        return self._call(lambda: merge_adapter(model, self.folder))

    def adapted(
        self,
        auto_class: type["_BaseAutoModelClass"],
        config: "PreTrainedConfig",
        options: Mapping[str, Any],
        *,
        fp32: bool = False,
    ) -> "PeftModel":
        """Returns the base with the adapter beside its weights: in their dtype, as it was trained, or in ``fp32``.

        Raises `ModelError`.
        """
        base = super().from_pretrained(auto_class, config, options)
        self._resize_embeddings(base)
        return self._call(lambda: load_adapter(base, self.folder, fp32=fp32))

    def _resize_embeddings(self, model: "PreTrainedModel") -> None:
        """Adds rows to the base for the tokens of the adapter's tokenizer, as PEFT does."""
        from transformers import AutoTokenizer

        if not (Path(self.folder).expanduser() / "tokenizer_config.json").is_file():
            return
        trust = self.options["trust_remote_code"]
        tokens = self._call(lambda: len(AutoTokenizer.from_pretrained(self.folder, trust_remote_code=trust)))
        if tokens > model.config.get_text_config().vocab_size:
            model.resize_token_embeddings(tokens, mean_resizing=False)

    def _label(self) -> str:
        return f"{self.key}: {self.folder}, an adapter of {self.name}"


def load_adapter(base: nn.Module, folder: str, *, fp32: bool) -> "PeftModel":
    """Returns ``base`` with the adapter in ``folder`` beside its weights: in ``fp32``, or in the dtype of the base."""
    import peft

    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        adapted: PeftModel = peft.PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=fp32)
    return adapted


def merge_adapter(base: nn.Module, folder: str) -> nn.Module:
    """Returns ``base`` with the adapter in ``folder`` added to its weights; partitioned ones are gathered by layer."""
    adapted = load_adapter(base, folder, fp32=True)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        if not is_partitioned(base):
            merged = adapted.merge_and_unload()
        else:
            for layer in [one for one in adapted.modules() if hasattr(one, "merge") and hasattr(one, "base_layer")]:
                with gathered(layer.parameters(), modify=True):
                    layer.merge()
            merged = adapted.unload()
    merged.__dict__.pop("peft_config", None)
    merged.requires_grad_(True)
    model: nn.Module = merged
    return model
