"""Reads configs and weights of transformers from a folder, a GGUF file or the hub, its errors in one sentence."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from arctic_training.errors import ModelError
from arctic_training.logging import logger
from arctic_training.registry import nearest

T = TypeVar("T")


class Pretrained:
    """Where a model is. ``name`` is a folder, a ``.gguf`` file, or a name on the hub."""

    def __init__(self, name: str, *, trust_remote_code: bool) -> None:
        path = Path(name).expanduser()
        self.name, self.path = name, path
        self.is_gguf = path.suffix == ".gguf"
        self.location = str(path.parent if self.is_gguf else path if path.is_dir() else name)
        self.options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if self.is_gguf:
            self.options["gguf_file"] = path.name

    def config(self, overrides: Mapping[str, Any]) -> tuple[Any, bool]:
        """The model's config with ``overrides``, and whether it still has as many layers as the weights."""
        from transformers import AutoConfig

        config = self._reading(lambda: AutoConfig.from_pretrained(self.location, **self.options))
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
        if overrides:
            config = self._reading(lambda: overridden(config, overrides))
        return config, getattr(config.get_text_config(), "num_hidden_layers", None) == layers

    def drawn(self, auto_class: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
        """The model with random weights."""
        trust = self.options["trust_remote_code"]
        model: nn.Module = self._reading(lambda: auto_class.from_config(config, trust_remote_code=trust, **options))
        return model

    def loaded(self, auto_class: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
        """The model with its weights. Raises `ModelError` when the files do not hold all of them, or hold others."""
        told = {**self.options, **options, "config": config, "output_loading_info": True}
        if self.is_gguf:
            from transformers import GgufConfig

            told["quantization_config"] = GgufConfig(dequantize=True)
        # sizes that do not fit are told here, by name
        told["ignore_mismatched_sizes"] = True
        model, info = self._reading(lambda: auto_class.from_pretrained(self.location, **told))
        wrong = [
            f"{name} is {list(there)} in the file, {list(wanted)} by the config"
            for name, there, wanted in sorted(info["mismatched_keys"])
        ]
        wrong += [f"{name} is missing" for name in sorted(info["missing_keys"])]
        if wrong:
            more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ModelError(f"{self._said()}: the weights do not fit the config: {'; '.join(wrong[:3])}{more}")
        if unused := sorted(info["unexpected_keys"]):
            logger.warning(f"{self.name}: {len(unused)} weights have no place in the model, {unused[0]} among them")
        return _as_plain(model) if self.is_gguf else model  # type: ignore[no-any-return]

    def _reading(self, read: Callable[[], T]) -> T:
        path = self.path
        if (self.name.startswith((".", "/", "~")) or self.is_gguf) and not path.exists():
            raise ModelError(f"{self._said()}: no such {'file' if self.is_gguf else 'folder'}")
        if path.is_dir() and not (path / "config.json").exists():
            raise ModelError(f"{self._said()}: no config.json in it; a folder that save_pretrained wrote is wanted")
        try:
            return read()
        except Exception as error:
            raise ModelError(self._sentence(error)) from error

    def _sentence(self, error: Exception) -> str:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            text = "it brings Python code of its own, which is run only with model.trust_remote_code: true"
        elif "attn_implementation" in text or "FlashAttention" in text or "flash_attn" in text:
            return f"model.attn_implementation: {text}"
        elif "Unrecognized configuration class" in text:
            text = "no causal language model of transformers has such a config"
        elif type(error).__name__ == "SafetensorError":
            text = f"a file of weights is damaged or cut off: {text}"
        elif not self.path.exists():
            text = f"no folder here, and not to be had from the hub: {text}"
        return f"{self._said()}: {text[:500]}"

    def _said(self) -> str:
        return f"model.name_or_path: {self.name}"


def overridden(config: Any, overrides: Mapping[str, Any]) -> Any:
    """The config with some of its fields changed. Raises `ModelError` for a field that it does not have."""
    known = config.to_dict()
    for name in overrides:
        if name not in known and not hasattr(config, name):
            meant = nearest(name, sorted(known)).split("? ")[0]
            guess = f"; {meant}?" if meant.startswith("did") else ""
            raise ModelError(f"model.hf_config_kwargs: {type(config).__name__} has no {name!r}{guess}")
    changed = {**known, **overrides}
    if "num_hidden_layers" in overrides:
        # lists that say something of every layer are made anew for their number
        for name, value in known.items():
            if isinstance(value, list) and len(value) == known.get("num_hidden_layers") and name not in overrides:
                del changed[name]
    return type(config).from_dict(changed)


def _as_plain(model: Any) -> Any:
    """The weights are plain numbers now; a model that still says it is quantized could not be saved."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    return model
