"""Models of transformers: pretrained, from a GGUF file, or with random weights from a config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, SerializeAsAny
from torch import nn

from arctic_training.config.base import ComponentConfig
from arctic_training.config.component import Shelf
from arctic_training.config.model import ModelConfig
from arctic_training.engine.config import deepspeed_config
from arctic_training.engine.zero import sharded_construction
from arctic_training.errors import ModelError
from arctic_training.logging import logger
from arctic_training.model import attention
from arctic_training.model.factory import ModelFactory
from arctic_training.model.peft_transform import PeftConfig, PeftTransform
from arctic_training.model.transform import ModelTransform
from arctic_training.model.transforms import (
    ActivationCheckpointing,
    ActivationCheckpointingConfig,
    Compile,
    CompileConfig,
)
from arctic_training.registry import lookup

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class HFModelConfig(ModelConfig):
    name_or_path: str
    """A folder, a model's name on the hub, or a ``.gguf`` file, whose weights are brought to ``dtype``."""
    random_weights: bool = False
    """Draw the weights anew, by ``seed``; the model's folder then needs no more than a config."""
    hf_config_kwargs: dict[str, Any] = {}
    """Overrides of the model's config. Another count of layers means random weights."""
    attn_implementation: str = "auto"
    """``documents`` (no mask; samples packed into a row do not see each other), sdpa, eager, flash_attention_2,
    flash_attention_3 or flex_attention. ``auto`` is documents where the model's attention is plain and causal."""
    trust_remote_code: bool = False
    """Run the Python code that a model's folder brings with it."""
    activation_checkpointing: bool = False
    """Keep no activations inside the layers, and compute them again for the gradient: less memory, more time."""
    disable_activation_checkpoint: bool | None = None
    """ArcticTraining's name for the opposite of ``activation_checkpointing``."""
    compile: bool = False
    """Compile the layers with torch.compile."""
    peft_config: dict[str, Any] | None = None
    """A PEFT config: ``peft_type`` (LORA, ...) and what that method wants. Only the adapter is trained."""
    transforms: Annotated[list[SerializeAsAny[ComponentConfig]], Shelf("model_transform")] = []
    """What is done to the model after it is made, in this order; after the adapter, before checkpointing and compiling."""
    save_name: str | None = Field(default=None, min_length=1)
    """Name of the model in what is exported; the folder's own when left out."""

    @property
    def checkpoints_activations(self) -> bool:
        if self.disable_activation_checkpoint is not None:
            return not self.disable_activation_checkpoint
        return self.activation_checkpointing


class HFModelFactory(ModelFactory[HFModelConfig]):
    """Any causal language model of transformers. Raises `ModelError` for one that cannot be read."""

    name = "huggingface"
    config_type = HFModelConfig

    @property
    def auto_class(self) -> Any:
        """The class of transformers that makes and loads the model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def create_config(self) -> Any:
        from transformers import AutoConfig

        options = {**self._gguf, "trust_remote_code": self.config.trust_remote_code}
        config = self._read(lambda: AutoConfig.from_pretrained(self._location, **options))
        layers = getattr(config, "num_hidden_layers", None)
        known = config.to_dict()
        for name, value in self.config.hf_config_kwargs.items():
            if name not in known:
                raise ModelError(f"model.hf_config_kwargs: {type(config).__name__} has no {name!r}")
            setattr(config, name, value)
        # the trainer's choice of what is random must not depend on what transformers makes of a missing layer
        self._drawn = self.config.random_weights or getattr(config, "num_hidden_layers", None) != layers
        return config

    def create_model(self, config: Any) -> nn.Module:
        attention.register()
        options = {"dtype": DTYPES[self.config.dtype], "attn_implementation": self._attention(config)}
        options["trust_remote_code"] = self.config.trust_remote_code
        role = deepspeed_config(self.trainer.config, data_world=self.trainer.data_world, dtype=self.config.dtype)
        with sharded_construction(role):
            if self._drawn:
                model: nn.Module = self.auto_class.from_config(config, **options)
            else:
                model = self._load(config, options)
        attention.watch(model)
        self._fit_vocabulary(model)
        return model

    @property
    def transforms(self) -> Sequence[ModelTransform]:
        section, done = self.config, []
        if section.peft_config is not None:
            done.append(PeftTransform(PeftConfig(type="peft", config=section.peft_config)))
        done += [lookup("model_transform", one.type)(one) for one in section.transforms]  # type: ignore[call-arg]
        if section.checkpoints_activations:
            done.append(ActivationCheckpointing(ActivationCheckpointingConfig(type="activation_checkpointing")))
        if section.compile:
            done.append(Compile(CompileConfig(type="compile")))
        return done

    @property
    def _gguf(self) -> dict[str, str]:
        path = Path(self.config.name_or_path)
        return {"gguf_file": path.name} if path.suffix == ".gguf" else {}

    @property
    def _location(self) -> str:
        path = self.config.name_or_path
        return str(Path(path).parent) if self._gguf else path

    def _attention(self, config: Any) -> str | None:
        asked = self.config.attn_implementation
        if asked != "auto":
            return asked
        model_class = _model_class(self.auto_class, config)
        if model_class is not None and attention.supports(model_class, config):
            return attention.NAME
        logger.info(f"{type(config).__name__}: attention per document does not fit; transformers' own choice is used")
        return None

    def _load(self, config: Any, options: dict[str, Any]) -> nn.Module:
        if self._gguf:
            from transformers import GgufConfig

            options = {**options, **self._gguf, "quantization_config": GgufConfig(dequantize=True)}
        model, info = self._read(
            lambda: self.auto_class.from_pretrained(self._location, config=config, output_loading_info=True, **options)
        )
        wrong = [f"{name} is {tuple(here)}, and the config says {tuple(told)}" for name, here, told in info["mismatched_keys"]]
        wrong += [f"{name} is missing" for name in sorted(info["missing_keys"])]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ModelError(f"{self.config.name_or_path}: the weights do not fit the config: {'; '.join(wrong[:3])}{more}")
        loaded: nn.Module = model
        if self._gguf:
            # the weights are plain numbers now; a model that still says it is quantized could not be saved
            for name in ("quantization_config", "_pre_quantization_dtype"):
                if hasattr(loaded.config, name):
                    delattr(loaded.config, name)
            for name in ("hf_quantizer", "is_quantized", "quantization_method"):
                loaded.__dict__.pop(name, None)
        return loaded

    def _read(self, read: Any) -> Any:
        """What ``read`` returns, its errors in one sentence."""
        where = self.config.name_or_path
        path = Path(where)
        if (where.startswith((".", "/", "~")) or self._gguf) and not path.exists():
            raise ModelError(f"model.name_or_path: {where}: no such {'file' if self._gguf else 'folder'}")
        if path.is_dir() and not (path / "config.json").exists() and not self._gguf:
            raise ModelError(f"model.name_or_path: {where} holds no config.json; a folder that save_pretrained wrote is wanted")
        try:
            return read()
        except Exception as error:
            text = " ".join(str(error).split())
            if "trust_remote_code" in text:
                text = "it brings Python code of its own, which is run only with model.trust_remote_code: true"
            elif not path.exists():
                text = f"not a folder here, and not to be had from the hub: {text}"
            raise ModelError(f"model.name_or_path: {where}: {text[:500]}") from error

    def _fit_vocabulary(self, model: nn.Module) -> None:
        """Give every token of the tokenizer a row of the embedding."""
        tokenizer = self.trainer.tokenizer
        embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        if tokenizer is None or embedding is None:
            return
        rows = getattr(embedding.weight, "ds_shape", embedding.weight.shape)[0]
        if len(tokenizer) <= rows:
            return
        added = len(tokenizer.get_added_vocab())
        if len(tokenizer) - added > rows:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} tokens and the model {rows} rows in its embedding: they do not "
                "belong together; give tokenizer.name_or_path of the model's own"
            )
        logger.info(f"embedding: {rows} rows become {len(tokenizer)}, for tokens that were added to the tokenizer")
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def _model_class(auto_class: Any, config: Any) -> Any:
    mapping = auto_class._model_mapping
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    return found[0] if isinstance(found, (tuple, list)) else found
