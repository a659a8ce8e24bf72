"""The section of a model: the keys that all models have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema

from arctic_training.config.sections.base import ComponentConfig

_SHORT_NAMES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}


DType = Annotated[
    Literal["bf16", "fp16", "fp32"],
    BeforeValidator(lambda value: _SHORT_NAMES.get(str(value).removeprefix("torch."), value)),
    WithJsonSchema({"type": "string", "pattern": rf"^(bf16|fp16|fp32|(torch\.)?({'|'.join(_SHORT_NAMES)}))$"}),
]


@dataclass(frozen=True)
class NamesModel:
    """Marks a key that names what a model or a tokenizer is loaded from, which may be a run."""


NAMES_MODEL = NamesModel()


class ModelConfig(ComponentConfig):
    """Keys that every model has."""

    dtype: DType = "bf16"
    """Dtype of the weights in forward and backward: bf16, fp16 or fp32. Below fp32 the optimizer keeps fp32 weights."""

    @property
    def has_layers(self) -> bool:
        """True for a model that is a stack of layers whose computation a recipe can change."""
        return False

    @property
    def keeps_activations(self) -> bool:
        """True where the recipe turns activation checkpointing off."""
        return False

    @property
    def unshareable(self) -> str:
        """Why ranks cannot share sequences of the model, and what to write instead; empty where nothing is known."""
        return ""

    @property
    def indivisible(self) -> str:
        """Why processes cannot divide the weights of the model, and what to write instead; empty where they may."""
        return f"a model of type {self.type} has no plan to divide its weights; remove it"

    def fit_role(self, tasks: Sequence[str], num_labels: int | None) -> None:
        """Fills in what a recipe leaves to the role of the model: the first of its ``tasks``, and ``num_labels``.

        Raises `Problems` for keys that do not fit it. A model of no task fits every role.
        """
