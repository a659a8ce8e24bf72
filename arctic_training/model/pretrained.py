"""Loads configs and weights of transformers from a folder, a GGUF file or the hub, with errors of one sentence."""

import copy
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from arctic_training.config.checks.files import not_on_hub
from arctic_training.config.checks.hub import unavailable
from arctic_training.display.libraries import without_progress_bars
from arctic_training.errors.types import ModelError
from arctic_training.logging import logger
from arctic_training.model import weight_files
from arctic_training.model.checks.weight_shapes import (
    check_modules_in_files,
    check_new_weights,
    check_weight_shapes,
    is_named,
    mismatch_message,
)
from arctic_training.model.config_values import coerce_values
from arctic_training.model.tasks import TASKS
from arctic_training.model.transformers_internals import converts_weights, renamed_weights
from arctic_training.registry import suggest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

T = TypeVar("T")

_UNKNOWN_TYPE = re.compile(r"has model type `([^`]*)` but")
_NOT_A_TENSOR = re.compile(r"GLOBAL (\S+)")


class Pretrained:
    """A model of transformers, to be built or loaded. ``name`` is a folder, a ``.gguf`` file, or a name on the hub."""

    def __init__(self, name: str, *, trust_remote_code: bool, key: str = "model.name_or_path") -> None:
        """``key`` is the recipe's key of the name, for error messages."""
        path = Path(name).expanduser()
        self.name, self.path, self.key = name, path, key
        self.is_gguf = path.suffix == ".gguf"
        self.location = str(path.parent if self.is_gguf else path if path.is_dir() else name)
        self.new_weights: Sequence[str] = ()
        """Paths of modules or weights that the files need not hold, or may hold in another shape."""
        self.options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if self.is_gguf:
            self.options["gguf_file"] = path.name

    def config(self, overrides: Mapping[str, Any]) -> tuple[Any, bool]:
        """Returns the model's config with ``overrides``, and whether it still has as many layers as the weights.

        Raises `ModelError` for a config that cannot be read, or an override that it has no field for.
        """
        config = self._call(self._read_config)
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
        if overrides:
            config = self._call(lambda: override_config(config, overrides))
        return config, getattr(config.get_text_config(), "num_hidden_layers", None) == layers

    def _read_config(self) -> "PreTrainedConfig":
        from transformers import AutoConfig

        if self.is_gguf:
            file = self.path.resolve()
            return copy.deepcopy(_read_gguf_config(file, (file.stat().st_mtime_ns, file.stat().st_size)))
        return AutoConfig.from_pretrained(self.location, **self.options)

    def from_config(self, auto_class: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
        """Returns the model with random weights. Raises `ModelError`."""
        trust = self.options["trust_remote_code"]
        model: nn.Module = self._call(lambda: auto_class.from_config(config, trust_remote_code=trust, **options))
        return model

    def on_meta_device(self, auto_class: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
        """Returns the model with parameters that have a shape and no values. Raises `ModelError`."""
        with torch.device("meta"):
            return self.from_config(auto_class, copy.deepcopy(config), options)

    def set_generation_config(self, model: nn.Module) -> None:
        """Gives a ``model`` that generates the generation config of the files, as `from_pretrained` does.

        Raises `ModelError` for one that cannot be read.
        """
        from transformers import GenerationConfig

        if hasattr(model, "generation_config") and (self.path / "generation_config.json").is_file():
            model.generation_config = self._call(lambda: GenerationConfig.from_pretrained(self.location))

    def check_files(self, meta_model: nn.Module) -> None:
        """Compares the headers of the files with ``meta_model``, the model on the meta device.

        Raises `ModelError` for files that are missing or damaged, or hold weights of other shapes.
        """
        with self.named_in_errors():
            check_new_weights(meta_model, self.new_weights)
        if not self.path.is_dir() or self.is_gguf:
            return
        with self.named_in_errors():
            shapes = weight_files.read_shapes(self.path)
            if not shapes and not any(self.path.glob("pytorch_model*.bin*")):
                raise ModelError("no weights in it; expected model.safetensors, or an index with its files")
            converts = converts_weights(meta_model)
            if converts:  # they count by both names
                shapes |= {name: [] for name in renamed_weights(meta_model, shapes)}
            else:
                check_weight_shapes(meta_model, shapes, new=self.new_weights)
            check_modules_in_files(meta_model, shapes, new=self.new_weights, converts=converts)
        for file in [] if shapes else sorted(self.path.glob("pytorch_model*.bin")):
            self._call(lambda file=file: weight_files.load_pickle(file))  # type: ignore[misc]

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Raises each `ModelError` of the block again, with key and name of the model before its message."""
        try:
            yield
        except ModelError as error:
            section = self.key.partition(".")[0]
            text = str(error).replace("model.new_weights", f"{section}.new_weights")
            raise ModelError(f"{self._label()}: {text}") from error

    def from_pretrained(self, auto_class: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
        """Returns the model with its weights. Raises `ModelError` when the files lack some, or hold other shapes."""
        kwargs = {**self.options, **options, "config": config, "output_loading_info": True}
        if self.is_gguf:
            from transformers import GgufConfig

            kwargs["quantization_config"] = GgufConfig(dequantize=True)
        # shapes that do not fit are named below
        kwargs["ignore_mismatched_sizes"] = True
        with _quiet_loading():
            model, info = self._call(lambda: auto_class.from_pretrained(self.location, **kwargs))
        prefix = model.base_model_prefix
        problems = [
            f"{name} is {list(in_file)} in the file, {list(by_config)} by the config"
            for name, in_file, by_config in sorted(info["mismatched_keys"])
            if not is_named(name, self.new_weights, prefix)
        ]
        missing = (name for name in sorted(info["missing_keys"]) if not is_named(name, self.new_weights, prefix))
        problems += [f"{name} is missing" for name in missing]
        if problems:
            raise ModelError(f"{self._label()}: {mismatch_message(problems)}")
        if unused := sorted(info["unexpected_keys"]):
            in_backbone = any(name.startswith(f"{prefix}.") for name in unused)  # and not just another head
            level = "WARNING" if in_backbone else "INFO"
            logger.log(level, f"{self.name}: {len(unused)} weights have no place in the model, {unused[0]} among them")
        return _without_quantization(model) if self.is_gguf else model  # type: ignore[no-any-return]

    def _call(self, load: Callable[[], T]) -> T:
        """Calls ``load`` of transformers. Raises `ModelError` for every error of it."""
        if self.path.is_dir() and not (self.path / "config.json").exists():
            raise ModelError(f"{self._label()}: no config.json in it; expected a folder that save_pretrained wrote")
        if why := unavailable(self.name):
            raise ModelError(f"{self._label()}: {why}")
        try:
            return load()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(self._message(error)) from error

    def _message(self, error: Exception) -> str:
        """Returns an error of transformers or safetensors in one sentence that says what to do."""
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
            task = next((task for task in TASKS.values() if f"{task.auto_class}." in text), TASKS["causal_lm"])
            text = f"no {task.noun} of transformers has such a config"
        elif type(error).__name__ == "SafetensorError":
            text = f"a file of weights is damaged or cut off: {text}"
        elif "Weights only load failed" in text:
            other = _NOT_A_TENSOR.search(text)
            such_as = f", such as {other[1]}," if other else ""
            text = f"its .bin file holds more than tensors{such_as} which could run code, and was not loaded; "
            text += "have the weights written as safetensors"
        elif not self.path.exists():
            text = not_on_hub(text)
        return f"{self._label()}: {text[:500]}"

    def _label(self) -> str:
        return f"{self.key}: {self.name}"


def override_config(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Returns a copy of a config with some of its fields changed, also of the configs inside it.

    Raises `ModelError` for a field that it does not have.
    """
    known = config.to_dict()
    for name in overrides:
        if name in ("dtype", "torch_dtype"):
            raise ModelError(f"model.hf_config_kwargs.{name}: set model.dtype instead")
        if name not in known and not hasattr(config, name):
            suggestion = suggest(name, sorted(known)).split("? ")[0]
            hint = f"; {suggestion}?" if suggestion.startswith("did") else ""
            raise ModelError(f"model.hf_config_kwargs: {type(config).__name__} has no {name!r}{hint}")
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
    inner = {
        name: override_config(parts[name], value).to_dict()
        for name, value in overrides.items()
        if isinstance(value, Mapping) and parts.get(name) is not None
    }
    changed = {**known, **coerce_values(type(config), overrides), **inner}
    if "num_hidden_layers" in overrides:
        # lists with an entry for every layer are made anew for the new number
        for name, value in known.items():
            if isinstance(value, list) and len(value) == known.get("num_hidden_layers") and name not in overrides:
                del changed[name]
    return type(config).from_dict(changed)


@functools.lru_cache(maxsize=4)
def _read_gguf_config(file: Path, state: tuple[int, int]) -> "PreTrainedConfig":
    """Returns the config in a GGUF file, which is read again when its ``state``, time and size, is another one."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Disables transformers' warnings, whose content our messages have, and its progress bars outside a terminal."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_progress_bars(keep_in_terminal=True):
            yield
    finally:
        logging.set_verbosity(level)


def _without_quantization(model: Any) -> Any:
    """Removes the marks of quantization: its weights are plain numbers now, and could not be saved with them."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    return model
