"""The keys of a recipe's model section for models of transformers."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from arctic_training.checkpoint.saved_model import find_model, is_adapter
from arctic_training.config.checks.files import unreadable
from arctic_training.config.checks.not_built import MODEL
from arctic_training.config.checks.problems import Problem, Problems
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.component import AnyComponent, each, parse_component
from arctic_training.config.sections.model import NAMES_MODEL, ModelConfig
from arctic_training.errors.types import ArcticError
from arctic_training.model import attention
from arctic_training.model.pretrained_adapter import base_of
from arctic_training.model.tasks import TASKS, TaskName

SHARED_AS_DOCUMENTS = ("flash_attention_2", "flash_attention_3", "sdpa")
"""Implementations in whose place processes that share sequences have attention per document, to the same numbers."""


class HFModelConfig(ModelConfig):
    """The model section for a model of transformers."""

    name_or_path: Annotated[str, NAMES_MODEL]
    """A folder, a model's name on the hub, or a ``.gguf`` file, whose weights are converted to ``dtype``. The folder of
    an adapter is loaded as its base with the adapter merged into it. A run folder, or a folder of checkpoints, stands
    for the newest complete checkpoint in it at the start of the run, and its file ``best`` for the best one."""
    task: TaskName = "causal_lm"
    """What the model computes: causal_lm or seq2seq_lm (tokens), sequence_classification (the scores of labels for a
    text), token_classification (for each token), regression (one number for a text) or encoder (hidden states). By
    default what the trainer trains."""
    num_labels: int | None = Field(default=None, ge=1)
    """How many labels a classifier has; by default as many as the model in the files."""
    labels: list[str] = []
    """The names of a classifier's labels, in the order of their numbers; by default those of the model in the files."""
    random_weights: bool = False
    """Draw the weights at random, by ``seed``; the model's folder then needs no more than a config."""
    new_weights: list[str] = []
    """Modules or weights that are initialised at random where the files lack them, or hold another shape: ``[score]``
    for a new head. A path of the model, without the prefix of its backbone or with it."""
    hf_config_kwargs: dict[str, Any] = {}
    """Overrides of the model's config. Another number of layers means random weights."""
    attn_implementation: str = "auto"
    """``documents`` (no mask; samples packed into a row do not see each other), sdpa, eager, flash_attention_2,
    flash_attention_3 or flex_attention. ``auto`` is documents where the model's attention is plain and causal, and so
    are sdpa, flash_attention_2 and 3 where processes share sequences."""
    trust_remote_code: bool = False
    """Run the Python code in the model's folder."""
    resize_vocabulary: bool = False
    """Add rows with random weights for tokens of the tokenizer that the model has no row for; otherwise refuse them."""
    activation_checkpointing: Annotated[bool | Literal["auto", "selective"], RESUME_SAFE] = "auto"
    """Recompute the activations inside the layers for the gradient, rather than keep them: less memory, a third more
    time. ``selective`` keeps what linear layers and attention return, and recomputes the rest. ``auto``: where by an
    estimate they would not fit in the GPU's memory."""
    disable_activation_checkpoint: Annotated[bool | None, RESUME_SAFE] = None
    """ArcticTraining's name for the opposite of ``activation_checkpointing``; false leaves it to the estimate."""
    compile: bool = False
    """Compile the layers with torch.compile."""
    peft_config: dict[str, Any] | None = None
    """A PEFT config: ``peft_type`` (LORA, ...) and the fields of that method. Only the adapter is trained."""
    transforms: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("model_transform")] = []
    """Transforms of the model, in this order, after the adapter and before activation checkpointing and compiling."""

    not_built = MODEL

    @property
    def has_layers(self) -> bool:
        return True

    @property
    def keeps_activations(self) -> bool:
        return bool(self.disable_activation_checkpoint) or self.activation_checkpointing is False

    @property
    def unshareable(self) -> str:
        fits = self.attn_implementation in ("auto", attention.NAME, *SHARED_AS_DOCUMENTS)
        return "" if fits else "processes share attention per document only; give model.attn_implementation: auto"

    @property
    def indivisible(self) -> str:
        if self.type not in ("", "huggingface"):
            return f"a model of type {self.type} is not divided; use type: huggingface"
        if (method := str((self.peft_config or {}).get("peft_type", "LORA")).upper()) != "LORA":
            return f"of adapters LORA is divided, and {method} is not; use another peft_type"
        if self.compile or any(one.type == "compile" for one in self.transforms):
            return "compiled layers are not divided; remove model.compile"
        if any(one.type == "tiled_mlp" for one in self.transforms):
            return "MLPs are divided or tiled; remove tiled_mlp from model.transforms"
        return ""

    def missing_paths(self) -> list[Problem]:
        try:
            folder = find_model(self.name_or_path)
            name = base_of(folder) if is_adapter(folder) else folder
        except ArcticError as error:
            return [Problem(("name_or_path",), str(error))]
        problem = unreadable(name, holds="config.json")
        if not problem:
            return []
        adapter = f"{folder}: the base of the adapter, " if name != folder else ""
        return [Problem(("name_or_path",), adapter + problem)]

    @field_validator("transforms", mode="before")
    @classmethod
    def _parse_transforms(cls, value: object) -> object:
        return each(value, partial(parse_component, "model_transform"))

    def fit_role(self, tasks: Sequence[str], num_labels: int | None) -> None:
        keys = self.model_fields_set
        if "task" not in keys:
            self.task = tasks[0]  # type: ignore[assignment]
            keys.discard("task")  # a section that is derived from this one may be of another role
        elif self.task not in tasks:
            problem = f"{self.task}, and the trainer takes {' or '.join(tasks)} here"
            raise Problems([Problem(("task",), problem)])
        num_labels = TASKS[self.task].num_labels or num_labels
        key = "labels" if self.labels else "num_labels"
        count = len(self.labels) or self.num_labels
        if count is not None and not TASKS[self.task].has_labels:
            raise Problems([Problem((key,), f"a {TASKS[self.task].noun} has no labels; remove it")])
        if count is not None and num_labels is not None and count != num_labels:
            raise Problems([Problem((key,), f"{count} labels, and the trainer needs {num_labels}; remove it")])
        if count is None and num_labels is not None and TASKS[self.task].has_labels:
            self.num_labels = num_labels
            keys.discard("num_labels")

    @model_validator(mode="after")
    def _check_labels(self) -> "HFModelConfig":
        if twice := next((one for one in self.labels if self.labels.count(one) > 1), None):
            raise ValueError(f"labels: {twice!r} occurs twice")
        if self.labels and self.num_labels not in (None, len(self.labels)):
            raise ValueError(f"num_labels: {self.num_labels}, and labels names {len(self.labels)}; give one of them")
        return self

    @model_validator(mode="after")
    def _check_checkpointing(self) -> "HFModelConfig":
        if self.disable_activation_checkpoint and self.activation_checkpointing in (True, "selective"):
            raise ValueError("disable_activation_checkpoint and activation_checkpointing contradict each other")
        listed = {one.type: one for one in self.transforms}
        selective = getattr(listed.get("activation_checkpointing"), "selective", False)
        if (selective or self.activation_checkpointing == "selective") and (self.compile or "compile" in listed):
            text = "a compiled layer is one operation, of which nothing can be kept; give true, or remove compile"
            raise ValueError(f"activation_checkpointing: selective, and {text}")
        return self
