"""Models of transformers: pretrained, from a GGUF file, or with random weights from a config."""

import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import SerializeAsAny, field_validator, model_validator
from torch import nn

from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.checks.not_built import require_built
from arctic_training.config.checks.paths import unreadable
from arctic_training.config.checks.problems import Problem
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.component import AnyComponent, parse_component
from arctic_training.config.sections.model import ModelConfig
from arctic_training.distributed import process_group
from arctic_training.engine.config import deepspeed_config
from arctic_training.engine.zero import build_random_model, sharded_construction
from arctic_training.errors.types import ModelError
from arctic_training.logging import logger
from arctic_training.model import attention
from arctic_training.model.checks.dry_run import require_positions
from arctic_training.model.checks.memory import SHARE, estimate, layout_of, require_room
from arctic_training.model.checks.own_loss import require_own_loss
from arctic_training.model.checks.packing_isolation import check_packing_isolation
from arctic_training.model.checks.trial import require_runs
from arctic_training.model.factory import ModelFactory
from arctic_training.model.pretrained import Pretrained
from arctic_training.model.pretrained_adapter import PretrainedAdapter, base_of, is_adapter
from arctic_training.model.target_losses import causal_model
from arctic_training.model.transforms.base import ModelTransform
from arctic_training.model.transforms.builtin import (
    ActivationCheckpointing,
    ActivationCheckpointingConfig,
    Compile,
    CompileConfig,
)
from arctic_training.model.transforms.peft import PeftConfig, PeftTransform
from arctic_training.model.vocabulary import fit_vocabulary, warn_of_untrained_rows

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class HFModelConfig(ModelConfig):
    name_or_path: str
    """A folder, a model's name on the hub, or a ``.gguf`` file, whose weights are brought to ``dtype``. The folder of
    an adapter is read as its base with the adapter merged into it."""
    random_weights: bool = False
    """Draw the weights anew, by ``seed``; the model's folder then needs no more than a config."""
    new_weights: list[str] = []
    """Modules that the files hold nothing of, to be drawn at random, such as the head that a subclass puts on it."""
    hf_config_kwargs: dict[str, Any] = {}
    """Overrides of the model's config. Another count of layers means random weights."""
    attn_implementation: str = "auto"
    """``documents`` (no mask; samples packed into a row do not see each other), sdpa, eager, flash_attention_2,
    flash_attention_3 or flex_attention. ``auto`` is documents where the model's attention is plain and causal."""
    trust_remote_code: bool = False
    """Run the Python code that a model's folder brings with it."""
    resize_vocabulary: bool = False
    """Give tokens of the tokenizer that the model has no row for one with random weights, rather than refuse them."""
    activation_checkpointing: Annotated[bool | Literal["auto"], RESUME_SAFE] = "auto"
    """Keep no activations inside the layers, and compute them again for the gradient: less memory, a third more time.
    ``auto``: where by an estimate they would not fit in the GPU's memory."""
    disable_activation_checkpoint: Annotated[bool | None, RESUME_SAFE] = None
    """ArcticTraining's name for the opposite of ``activation_checkpointing``; false leaves it to the estimate."""
    compile: bool = False
    """Compile the layers with torch.compile."""
    peft_config: dict[str, Any] | None = None
    """A PEFT config: ``peft_type`` (LORA, ...) and what that method wants. Only the adapter is trained."""
    transforms: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("model_transform")] = []
    """What is done to the model, in this order, after the adapter and before checkpointing and compiling."""
    save_name: Annotated[str | None, RESUME_SAFE] = None
    """Name of the model in what is exported; not built yet."""

    _built = field_validator("save_name")(require_built)

    @property
    def unshareable(self) -> str:
        fits = self.attn_implementation in ("auto", attention.NAME)
        return "" if fits else "processes share attention per document only; give model.attn_implementation: auto"

    def missing_paths(self) -> list[Problem]:
        try:
            name = base_of(self.name_or_path) if is_adapter(self.name_or_path) else self.name_or_path
        except ModelError as error:
            return [Problem(("name_or_path",), str(error))]
        told = unreadable(name, holds="config.json")
        of = f"{self.name_or_path}: the base of the adapter, " if told and name != self.name_or_path else ""
        return [Problem(("name_or_path",), of + told)] if told else []

    @field_validator("transforms", mode="before")
    @classmethod
    def _read_transforms(cls, value: Any) -> Any:
        return [parse_component("model_transform", one) for one in (value if isinstance(value, list) else [value])]

    @model_validator(mode="after")
    def _one_word_on_checkpointing(self) -> "HFModelConfig":
        if self.disable_activation_checkpoint and self.activation_checkpointing is True:
            raise ValueError("disable_activation_checkpoint and activation_checkpointing contradict each other")
        return self


class HFModelFactory(ModelFactory[HFModelConfig]):
    """Any causal language model of transformers. Raises `ModelError` for one that cannot be read."""

    name = "huggingface"
    config_type = HFModelConfig
    _checkpoints = False

    @property
    def auto_class(self) -> Any:
        """The class of transformers that makes and loads the model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    @functools.cached_property
    def pretrained(self) -> Pretrained:
        section = next((name for name, one in vars(self.trainer.config).items() if one is self.config), "model")
        name, trust = self.config.name_or_path, self.config.trust_remote_code
        kind = PretrainedAdapter if is_adapter(name) else Pretrained
        found = kind(name, trust_remote_code=trust, key=f"{section}.name_or_path")
        found.new_weights = self.config.new_weights
        return found

    def check(self) -> None:
        """Everything that a model without weights tells, and the headers of the files with them."""
        config = self.create_config()
        self._require_fit(config)
        skeleton = self.pretrained.skeleton(self.auto_class, config, self._options(config))
        if not self._drawn:
            self.pretrained.require_shapes(skeleton)
        text = config.get_text_config()
        known = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
        with self.pretrained.named():
            require_room(skeleton, self.trainer, self.config, self._deepspeed)
        require_positions(skeleton, getattr(self.trainer.config.data, "max_length", None), known)
        self.skeleton = skeleton

    def check_tokenizer(self, tokenizer: Any) -> None:
        adapter, skeleton = self._adapter, self.skeleton
        if skeleton is None:
            return
        new = self._fit_vocabulary(skeleton, tokenizer)
        if adapter is not None:
            self.skeleton = adapter.dry_run(skeleton, sharded=self._stage == 3)
            if self.skeleton is not None:
                require_runs(self.skeleton, adapter.method, torch.device("meta"))
                warn_of_untrained_rows(self.skeleton, [one for one in new if one[1] != tokenizer.pad_token])

    def validate_engine(self, engine: Any) -> None:
        adapter = self._adapter
        if adapter is not None:
            require_runs(engine, adapter.method, self.trainer.device)
        own = causal_model(engine).config._attn_implementation != attention.NAME
        if self.trainer.packs_samples and (own or adapter is not None):
            check_packing_isolation(engine, self.trainer.device)
        if self.auto_class.__name__ == "AutoModelForCausalLM":
            shared = self.trainer.config.sequence_parallel_size > 1
            require_own_loss(engine, self.trainer.device, shared=shared, overrides=self.config.hf_config_kwargs)

    def create_config(self) -> Any:
        return self._read_config()[0]

    def create_model(self, config: Any) -> nn.Module:
        self._require_fit(config)
        options = self._options(config)
        source, what = self.pretrained, (self.auto_class, config, options)
        drawn = build_random_model(lambda: source.drawn(*what), self._deepspeed) if self._drawn else None
        with sharded_construction(self._deepspeed):
            model = source.loaded(*what) if drawn is None else drawn
            self._fit_vocabulary(model, self.trainer.tokenizer)
        return model

    def post_create_model_callback(self, model: nn.Module) -> None:
        """Does what every model needs, also one that a subclass makes in its own way."""
        self._fit_vocabulary(model, self.trainer.tokenizer)
        attention.watch(model)
        self._checkpoints = self._wants_checkpoints(model)

    @property
    def transforms(self) -> Sequence[ModelTransform]:
        section = self.config
        done: list[ModelTransform] = [self._adapter] if self._adapter is not None else []
        done += [ModelTransform.registered(one.type)(one) for one in section.transforms]
        named = {transform.name for transform in done}
        if self._checkpoints and ActivationCheckpointing.name not in named:
            done.append(ActivationCheckpointing(ActivationCheckpointingConfig(type="activation_checkpointing")))
        if section.compile and Compile.name not in named:
            done.append(Compile(CompileConfig(type="compile")))
        return done

    @functools.cached_property
    def _adapter(self) -> PeftTransform | None:
        told = self.config.peft_config
        if told is None:
            return None
        adapter = PeftTransform(PeftConfig(type="peft", config=told))
        changed = {"weights": self._drawn, "config": self.config.hf_config_kwargs, "format": self.pretrained.is_gguf}
        changed["new weights"] = self.config.new_weights
        changed["another adapter"] = isinstance(self.pretrained, PretrainedAdapter)
        adapter.base_changes = {name for name, one in changed.items() if one}
        return adapter

    def _read_config(self) -> tuple[Any, bool]:
        return self.pretrained.config(self.config.hf_config_kwargs)

    @property
    def _drawn(self) -> bool:
        """Whether the weights are random."""
        return self.config.random_weights or not self._read_config()[1]

    @functools.cached_property
    def _deepspeed(self) -> dict[str, Any]:
        """What DeepSpeed is given. Raises `RecipeError`."""
        return deepspeed_config(self.trainer.config, world=process_group.world_size(), dtype=self.config.dtype)

    @property
    def _stage(self) -> int:
        return int(self._deepspeed["zero_optimization"]["stage"])

    def _fit_vocabulary(self, model: nn.Module, tokenizer: Any) -> list[tuple[int, str]]:
        """Gives the model the rows that it lacks, and returns the tokens that they are for."""
        adapter, resize = self._adapter, self.config.resize_vocabulary
        with self.pretrained.named():
            new = fit_vocabulary(model, tokenizer, resize=resize, exact=adapter is not None)
        if adapter is not None and new:
            only_padding = [token for _, token in new] == [tokenizer.pad_token]
            adapter.base_changes.add("pad token" if only_padding else "vocabulary")
        return new

    def _options(self, config: Any) -> dict[str, Any]:
        attention.register()
        chosen = self._attention(config)
        self._require_shareable(config, chosen)
        return {"dtype": DTYPES[self.config.dtype], "attn_implementation": chosen}

    def _attention(self, config: Any) -> str | None:
        asked = self.config.attn_implementation
        model_class = _model_class(self.auto_class, config)
        fits = model_class is not None and attention.supports(model_class, config)
        if asked == attention.NAME and not fits:
            raise ModelError(
                f"model.attn_implementation: {asked} does not fit {type(config).__name__}, whose attention is more "
                "than causal; give auto, or one that transformers has for it"
            )
        if asked != "auto":
            return asked
        if not fits:
            logger.info(f"{type(config).__name__}: attention per document does not fit; transformers' own is used")
        return attention.NAME if fits else None

    def _require_fit(self, config: Any) -> None:
        """Raises `ModelError` where the recipe asks for what would be silently wrong."""
        packs = self.trainer.packs_samples
        if packs and not attention.keeps_documents_apart(config):
            raise ModelError(
                f"data.pack_samples: layers of {type(config).__name__} hand a state on from token to token, so that "
                "samples in one row would see each other; give pack_samples: false"
            )
        if packs and (adapter := self._adapter) is not None and adapter.adds_tokens:
            raise ModelError(
                f"data.pack_samples: {adapter.method} puts its tokens before a row, "
                "not before every sample in it; give pack_samples: false"
            )
        compiles = self.config.compile or any(one.type == Compile.name for one in self.config.transforms)
        if self._stage == 3 and compiles:
            raise ModelError(
                "model.compile: compiled layers do not fetch the weights that ZeRO stage 3 parts; use stage 2"
            )

    def _require_shareable(self, config: Any, chosen: str | None) -> None:
        """Raises `ModelError` where processes cannot share the sequences of the model and get its numbers."""
        size = self.trainer.config.sequence_parallel_size
        if size == 1:
            return
        name, text = type(config).__name__, config.get_text_config()
        heads = getattr(text, "num_attention_heads", None)
        rope = getattr(text, "rope_parameters", None) or {}
        kinds = {str(one.get("rope_type")) for one in [rope, *rope.values()] if isinstance(one, dict)}
        told = ""
        if unshareable := self.config.unshareable:
            told = f"{size} {unshareable}"
        elif chosen != attention.NAME:
            told = f"the attention of {name} is more than causal, or hidden from transformers; leave it out"
        elif isinstance(heads, int) and heads % size:
            fit = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            told = f"{size} processes cannot share the {heads} heads of {name}; these can: {fit}"
        elif odd := sorted(kinds & {"dynamic", "longrope"}):
            told = f"the positions of {name} ({odd[0]}) depend on the length of what a process sees; leave it out"
        elif (adapter := self._adapter) is not None and adapter.adds_tokens:
            told = f"{adapter.method} puts tokens before each part; leave it out"
        if told:
            raise ModelError(f"sequence_parallel_size: {told}")

    def _wants_checkpoints(self, model: nn.Module) -> bool:
        section, trainer = self.config, self.trainer.config
        if section.disable_activation_checkpoint or isinstance(section.activation_checkpointing, bool):
            return section.activation_checkpointing is True
        device, longest = self.trainer.device, getattr(trainer.data, "max_length", None)
        if device.type != "cuda" or not longest:
            return False
        needed = estimate(
            model,
            tokens=trainer.micro_batch_size
            * getattr(trainer, "num_generations", 1)
            * longest
            // trainer.sequence_parallel_size,
            layout=layout_of(self.trainer, section, self._deepspeed),
        )
        free = int(SHARE * torch.cuda.mem_get_info(device)[1])
        if needed is None or needed.total <= free:
            return False
        said = f"{needed.total / 2**30:.1f} GiB would be needed, of {free / 2**30:.1f}"
        logger.warning(
            f"model.activation_checkpointing: on, since by an estimate {said}; write true or false to decide"
        )
        return True


def _model_class(auto_class: Any, config: Any) -> Any:
    mapping = auto_class._model_mapping
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    return found[0] if isinstance(found, (tuple, list)) else found
