"""Reads configs and weights of transformers from a folder, a GGUF file or the hub, its errors in one sentence."""

import copy
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from arctic_training.config.checks.paths import beyond_reach
from arctic_training.errors.types import ModelError
from arctic_training.logging import logger
from arctic_training.model import weight_files
from arctic_training.model.checks.declared import declared
from arctic_training.model.checks.dry_run import misfit, require_modules, require_shapes
from arctic_training.registry import suggest

T = TypeVar("T")

_UNKNOWN_TYPE = re.compile(r"has model type `([^`]*)` but")
_NOT_A_TENSOR = re.compile(r"GLOBAL (\S+)")


class Pretrained:
    """Where a model is. ``name`` is a folder, a ``.gguf`` file, or a name on the hub."""

    def __init__(self, name: str, *, trust_remote_code: bool, key: str = "model.name_or_path") -> None:
        """``key`` is where the recipe has the name."""
        path = Path(name).expanduser()
        self.name, self.path, self.key = name, path, key
        self.is_gguf = path.suffix == ".gguf"
        self.location = str(path.parent if self.is_gguf else path if path.is_dir() else name)
        self.new_weights: Sequence[str] = ()
        """Modules whose weights the files need not hold."""
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

    def skeleton(self, auto_class: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
        """The model without weights: of what it is made, and nothing in it."""
        with torch.device("meta"):
            return self.drawn(auto_class, copy.deepcopy(config), options)

    def require_shapes(self, skeleton: nn.Module) -> None:
        """Raises `ModelError` for files that are missing or damaged, or hold weights of other shapes."""
        if not self.path.is_dir() or self.is_gguf:
            return
        with self.named():
            told = weight_files.shapes(self.path)
            if not told and not any(self.path.glob("pytorch_model*.bin*")):
                raise ModelError("no weights in it; model.safetensors, or an index with its files, is wanted")
            if not _is_rewritten(skeleton):
                require_shapes(skeleton, told)
                require_modules(skeleton, told, new=self.new_weights)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put the model before what is said of it."""
        try:
            yield
        except ModelError as error:
            raise ModelError(f"{self._said()}: {error}") from error

    def loaded(self, auto_class: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
        """The model with its weights. Raises `ModelError` when the files do not hold all of them, or hold others."""
        told = {**self.options, **options, "config": config, "output_loading_info": True}
        if self.is_gguf:
            from transformers import GgufConfig

            told["quantization_config"] = GgufConfig(dequantize=True)
        # sizes that do not fit are told here, by name
        told["ignore_mismatched_sizes"] = True
        with _quiet():
            model, info = self._reading(lambda: auto_class.from_pretrained(self.location, **told))
        wrong = [
            f"{name} is {list(there)} in the file, {list(wanted)} by the config"
            for name, there, wanted in sorted(info["mismatched_keys"])
        ]
        wrong += [f"{name} is missing" for name in sorted(info["missing_keys"]) if not self._is_new(name)]
        if wrong:
            raise ModelError(f"{self._said()}: {misfit(wrong)}")
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
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(self._sentence(error)) from error

    def _sentence(self, error: Exception) -> str:
        text = " ".join(str(error).split())
        if isinstance(error, KeyError):
            text = f"{text} is missing in one of its files"
        if "trust_remote_code" in text:
            text = "it brings Python code of its own, which is run only with model.trust_remote_code: true"
        elif unknown := _UNKNOWN_TYPE.search(text):
            text = f"its config.json says model_type {unknown[1]}, which this version of transformers does not know"
        elif "attn_implementation" in text or "FlashAttention" in text or "flash_attn" in text:
            return f"model.attn_implementation: {text}"
        elif "Unrecognized configuration class" in text:
            text = "no causal language model of transformers has such a config"
        elif type(error).__name__ == "SafetensorError":
            text = f"a file of weights is damaged or cut off: {text}"
        elif "Weights only load failed" in text:
            held = _NOT_A_TENSOR.search(text)
            what = f", such as {held[1]}," if held else ""
            text = f"its .bin file holds more than tensors{what} which could run code, and was not loaded; "
            text += "have the weights written as safetensors"
        elif not self.path.exists():
            text = beyond_reach(text)
        return f"{self._said()}: {text[:500]}"

    def _is_new(self, weight: str) -> bool:
        return any(weight.startswith(f"{module}.") for module in self.new_weights)

    def _said(self) -> str:
        return f"{self.key}: {self.name}"


def overridden(config: Any, overrides: Mapping[str, Any]) -> Any:
    """The config with some of its fields changed, of a config inside some of its own; `ModelError` for others."""
    known = config.to_dict()
    for name in overrides:
        if name in ("dtype", "torch_dtype"):
            raise ModelError(f"model.hf_config_kwargs.{name}: model.dtype says it; leave it out here")
        if name not in known and not hasattr(config, name):
            meant = suggest(name, sorted(known)).split("? ")[0]
            guess = f"; {meant}?" if meant.startswith("did") else ""
            raise ModelError(f"model.hf_config_kwargs: {type(config).__name__} has no {name!r}{guess}")
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
    inner = {
        name: overridden(parts[name], value).to_dict()
        for name, value in overrides.items()
        if isinstance(value, Mapping) and parts.get(name) is not None
    }
    changed = {**known, **declared(type(config), overrides), **inner}
    if "num_hidden_layers" in overrides:
        # lists that say something of every layer are made anew for their number
        for name, value in known.items():
            if isinstance(value, list) and len(value) == known.get("num_hidden_layers") and name not in overrides:
                del changed[name]
    return type(config).from_dict(changed)


def _is_rewritten(model: Any) -> bool:
    """Whether transformers makes other tensors of those in the files, so that they cannot be compared."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    quantized = getattr(model.config, "quantization_config", None)
    return bool(quantized or get_model_conversion_mapping(model, add_legacy=False))


@contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars are for people; what does not fit is told in a sentence."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _as_plain(model: Any) -> Any:
    """The weights are plain numbers now; a model that still says it is quantized could not be saved."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    return model
