"""Models of transformers: pretrained, from a GGUF file, or with random weights from a config."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from arctic_training.checkpoint.saved_model import is_adapter
from arctic_training.distributed import process_group
from arctic_training.engine import tensor_parallel
from arctic_training.engine.config import deepspeed_config
from arctic_training.engine.dtypes import DTYPES
from arctic_training.engine.engine import Engine
from arctic_training.engine.zero import build_random_model, sharded_construction
from arctic_training.errors.types import ModelError
from arctic_training.logging import logger
from arctic_training.model import attention
from arctic_training.model.causal_lm import max_positions
from arctic_training.model.checks.adapter_forward import check_adapter_forward
from arctic_training.model.checks.gpu_memory import needs_checkpointing
from arctic_training.model.checks.model_loss import check_model_loss
from arctic_training.model.checks.packing_isolation import check_packing_isolation
from arctic_training.model.checks.positions import check_positions
from arctic_training.model.checks.recipe_fit import (
    check_new_weights_trained,
    check_packing,
    check_pad_token,
    check_sequence_parallel,
    check_task,
)
from arctic_training.model.checks.tiling import check_tiling
from arctic_training.model.factory import ModelFactory
from arctic_training.model.huggingface_config import SHARED_AS_DOCUMENTS, HFModelConfig
from arctic_training.model.kept_activations import Recomputation
from arctic_training.model.layer_settings import checkpoints_activations, layer_transforms, recomputation_of
from arctic_training.model.pretrained import Pretrained
from arctic_training.model.pretrained_adapter import PretrainedAdapter
from arctic_training.model.tasks import TASKS, Task, set_labels, task_of
from arctic_training.model.transformers_internals import model_class_of
from arctic_training.model.transforms.base import ModelTransform
from arctic_training.model.transforms.compile import Compile
from arctic_training.model.transforms.peft import PeftConfig, PeftTransform
from arctic_training.model.transforms.tiled_mlp import tileable_mlps
from arctic_training.model.vocabulary import fit_vocabulary, warn_about_untrained_rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase
    from transformers.models.auto.auto_factory import _BaseAutoModelClass


class HFModelFactory(ModelFactory[HFModelConfig]):
    """Makes a model of transformers for a task. Raises `ModelError` for one that cannot be loaded."""

    name = "huggingface"
    _checkpoints_activations = False

    @property
    def auto_class(self) -> type["_BaseAutoModelClass"]:
        """The auto class of transformers that builds and loads the model: that of ``model.task``."""
        return TASKS[self.config.task].load_auto_class()

    @property
    def task(self) -> Task | None:
        """The task of the auto class; None for one that no task has."""
        return task_of(self.auto_class)

    @functools.cached_property
    def pretrained(self) -> Pretrained:
        """The folder, file or hub name of the recipe, from which config and weights are loaded."""
        name, trust = self.config.name_or_path, self.config.trust_remote_code
        source_type = PretrainedAdapter if is_adapter(name) else Pretrained
        source = source_type(name, trust_remote_code=trust, key=f"{self.section}.name_or_path")
        source.new_weights = self.config.new_weights
        return source

    def check(self) -> None:
        """Checks the model on the meta device, and the headers of its files. Raises `ModelError`."""
        model = self._on_meta_device()
        if not self._has_random_weights:
            self.pretrained.check_files(model)
        self._check_division(model)
        if self.recomputation.tile:
            tileable_mlps(model)
        for key in ("max_length", "max_source_length"):
            length = getattr(self.trainer.config.data, key, None)
            check_positions(model, length, max_positions(model), key=f"data.{key}")
        self.meta_model = model

    def _check_division(self, model: nn.Module) -> None:
        """Raises `ModelError` where the processes of the mesh cannot divide ``model``, which may have an adapter."""
        if (size := self.trainer.config.mesh.model) > 1 and (problem := tensor_parallel.problem(model, size)):
            raise ModelError(f"mesh.model: {problem}")

    def create_meta_model(self) -> nn.Module | None:
        model = self._on_meta_device()
        adapted = None if self._adapter is None else self._adapter.dry_run(model, sharded=False)
        return model if adapted is None else adapted

    @property
    def checkpoints_activations(self) -> bool | None:
        return checkpoints_activations(self.config, self.trainer.config)

    @property
    def recomputation(self) -> Recomputation:
        def width() -> int:
            return int(getattr(self._read_config()[0].get_text_config(), "hidden_size", 1))

        return recomputation_of(self.config, self.trainer.config, width)

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        adapter, model = self._adapter, self.meta_model
        if model is None:
            return
        new_tokens = self._fit_vocabulary(model, tokenizer)
        if self.task is not None and self.task.pools:
            with self.pretrained.named_in_errors():
                check_pad_token(model.config, tokenizer)
        if adapter is not None:
            self.meta_model = adapter.dry_run(model, sharded=self._stage == 3)
            if self.meta_model is not None:
                self._check_division(self.meta_model)
                if self.recomputation.tile:
                    tileable_mlps(self.meta_model)
                check_new_weights_trained(self.meta_model, self.config.new_weights)
                check_adapter_forward(self.meta_model, adapter.method, torch.device("meta"), task=self.task)
                new_tokens = [one for one in new_tokens if one[1] != getattr(tokenizer, "pad_token", None)]
                warn_about_untrained_rows(self.meta_model, new_tokens)

    def validate_engine(self, engine: Engine) -> None:
        adapter = self._adapter
        if adapter is not None:
            check_adapter_forward(engine, adapter.method, self.trainer.device, task=self.task)
        if self.recomputation.tile:
            check_tiling(engine, self.trainer.device)
        if self._has_documents:
            check_packing_isolation(engine, self.trainer.device, task=self.task)
        if self.task in (TASKS["causal_lm"], TASKS["seq2seq_lm"]):
            sequence_parallel = self.trainer.config.sequence_parallel_size > 1
            overrides = self.config.hf_config_kwargs
            check_model_loss(engine, self.trainer.device, sequence_parallel=sequence_parallel, overrides=overrides)

    def create_config(self) -> "PreTrainedConfig":
        return self._read_config()[0]

    def create_model(self, config: "PreTrainedConfig") -> nn.Module:
        self._check_recipe(config)
        source, args = self.pretrained, (self.auto_class, config, self._options(config))
        model = None
        if self._has_random_weights:
            model = build_random_model(lambda: source.from_config(*args), self._deepspeed)
        with sharded_construction(self._deepspeed):
            if model is None:
                model = source.from_pretrained(*args)
            self._fit_vocabulary(model, self.trainer.tokenizer)
        return model

    def post_create_model_callback(self, model: nn.Module) -> None:
        """Prepares every model, also one that a subclass makes in its own way. Raises `ModelError`."""
        self._fit_vocabulary(model, self.trainer.tokenizer)
        computed = set(getattr(model, "_keys_to_ignore_on_save", None) or ())  # such as positions of sines
        for name, parameter in model.named_parameters():
            if name in computed:
                parameter.requires_grad_(False)  # weight decay would change what nothing saves
        attention.add_packing_hooks(model)
        self._checkpoints_activations = self._needs_activation_checkpointing(model)

    @property
    def transforms(self) -> Sequence[ModelTransform[Any]]:
        others = layer_transforms(self.config, self.recomputation, checkpoints=self._checkpoints_activations)
        return others if self._adapter is None else [self._adapter, *others]

    @functools.cached_property
    def _adapter(self) -> PeftTransform | None:
        if self.config.peft_config is None:
            return None
        adapter = PeftTransform(PeftConfig(type="peft", config=self.config.peft_config))
        adapter.task_type = self.task.peft_type if self.task is not None else adapter.task_type
        changes = {
            "weights": self._has_random_weights,
            "config": self.config.hf_config_kwargs,
            "format": self.pretrained.is_gguf,
            "new weights": self.config.new_weights,
            "another adapter": isinstance(self.pretrained, PretrainedAdapter),
        }
        adapter.base_changes = {name for name, changed in changes.items() if changed}
        return adapter

    def _on_meta_device(self) -> nn.Module:
        """Returns the model without its adapter. Raises `ModelError`."""
        config = self.create_config()
        self._check_recipe(config)
        model = self.pretrained.on_meta_device(self.auto_class, config, self._options(config))
        if not self._has_random_weights:
            self.pretrained.set_generation_config(model)
        return model

    def _read_config(self) -> tuple["PreTrainedConfig", bool]:
        config, has_all_layers = self.pretrained.config(self.config.hf_config_kwargs)
        set_labels(config, self.config.labels, self.config.num_labels)
        return config, has_all_layers

    @property
    def _has_documents(self) -> bool:
        """Returns whether rows hold several documents, since samples are packed or processes share sequences."""
        return bool(self.trainer.packs_samples or self.trainer.config.sequence_parallel_size > 1)

    @functools.cached_property
    def _has_random_weights(self) -> bool:
        return self.config.random_weights or not self._read_config()[1]

    @functools.cached_property
    def _deepspeed(self) -> dict[str, Any]:
        """The config of DeepSpeed, of the role's own block where it has one. Raises `RecipeError`."""
        world, block = process_group.world_size(), getattr(self.trainer, "deepspeed_block", None)
        return deepspeed_config(self.trainer.config, world=world, dtype=self.config.dtype, block=block)

    @property
    def _stage(self) -> int:
        return int(self._deepspeed["zero_optimization"]["stage"])

    def _fit_vocabulary(self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase | None") -> list[tuple[int, str]]:
        """Adds the missing rows to the embedding, and returns their tokens; see `fit_vocabulary`."""
        adapter, resize = self._adapter, self.config.resize_vocabulary
        with self.pretrained.named_in_errors():
            new_tokens = fit_vocabulary(model, tokenizer, resize=resize, exact=adapter is not None)
        if adapter is not None and new_tokens:
            only_padding = [token for _, token in new_tokens] == [getattr(tokenizer, "pad_token", None)]
            adapter.base_changes.add("pad token" if only_padding else "vocabulary")
        return new_tokens

    def _options(self, config: "PreTrainedConfig") -> dict[str, Any]:
        """Returns the keyword arguments of transformers' ``from_config`` and ``from_pretrained``."""
        attention.register()
        implementation, size = self._attention(config), self.trainer.config.sequence_parallel_size
        if size > 1:
            if unshareable := self.config.unshareable:
                raise ModelError(f"sequence_parallel_size: {size} {unshareable}")
            check_sequence_parallel(config, implementation, size, self._adapter)
        return {"dtype": DTYPES[self.config.dtype], "attn_implementation": implementation}

    def _attention(self, config: "PreTrainedConfig") -> str | None:
        implementation, size = self.config.attn_implementation, self.trainer.config.sequence_parallel_size
        if size > 1 and implementation in SHARED_AS_DOCUMENTS:
            logger.info(
                f"{self.section}.attn_implementation: {implementation} is {attention.NAME} here, the attention that "
                f"{size} processes can share; it has the same kernel where there is one"
            )
            implementation = attention.NAME
        model_class = model_class_of(self.auto_class, config)
        fits = model_class is not None and attention.supports_document_attention(model_class, config)
        # of other tasks the attention may go both ways, which no config says; that of packed rows is tried
        is_tried = self._has_documents and self.task is TASKS["token_classification"]
        fits = fits and (is_tried or self.task in (None, TASKS["causal_lm"]))
        if implementation == attention.NAME and not fits:
            raise ModelError(
                f"model.attn_implementation: {implementation} does not fit {type(config).__name__}, whose attention is "
                "more than causal; give auto, or one that transformers has for it"
            )
        if implementation != "auto":
            return implementation
        if not fits and self.task in (None, TASKS["causal_lm"]):
            logger.info(f"{type(config).__name__}: attention per document does not fit; transformers' own is used")
        return attention.NAME if fits else None

    def _check_recipe(self, config: "PreTrainedConfig") -> None:
        """Raises `ModelError` where the recipe asks for what would be silently wrong."""
        with self.pretrained.named_in_errors():
            check_task(config, self.config, self.task)
        if self.trainer.packs_samples:
            check_packing(config, self._adapter, self.task)
        compiles = self.config.compile or any(one.type == Compile.name for one in self.config.transforms)
        if compiles and self._stage == 3:
            raise ModelError(
                "model.compile: compiled layers do not gather the weights that ZeRO stage 3 partitions; use stage 2"
            )

    def _needs_activation_checkpointing(self, model: nn.Module) -> bool:
        if (decided := self.checkpoints_activations) is not None or self.trainer.device.type != "cuda":
            return bool(decided)
        adapted = (self._adapter and self.create_meta_model()) or model  # below an adapter less is kept
        return needs_checkpointing(adapted, self.trainer, self.config, self._deepspeed, self.recomputation)
