"""Base of the trainers of class-conditional generative models, with classifier-free guidance."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.batching.loader import Batch
from arctic_training.errors.types import DataError, RecipeError
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.objectives.generative import GenerativeTrainer


@dataclass(frozen=True)
class Condition:
    """The classes of rows that are generated."""

    labels: Tensor | None = None
    """int64 ``[n]``, -100 for none; None for a network that reads no labels."""
    guidance_scale: float = 1.0

    def guided(self, predict: Callable[[Tensor | None], Tensor]) -> Tensor:
        """Returns what ``predict`` makes of the labels, ``[n, ...]``, guided: without labels, plus ``guidance_scale``
        times the difference that they make (Ho and Salimans 2022, arXiv 2207.12598, equation 6, where w is
        ``guidance_scale`` - 1)."""
        output = predict(self.labels)
        if self.labels is None or self.guidance_scale == 1:
            return output
        without = predict(torch.full_like(self.labels, IGNORE_INDEX))
        return without + self.guidance_scale * (output - without)


NO_CONDITION = Condition()


class ConditionalConfig(TrainerConfig):
    """Keys of trainers of models that may be conditioned on classes."""

    label_dropout: HumanFloat = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that are trained on without their label, which `guidance_scale` needs."""
    guidance_scale: Annotated[HumanFloat, RESUME_SAFE] = Field(default=1.0, ge=0)
    """How far samples follow their label: what the network predicts without it, plus so many times the difference that
    the label makes."""

    @model_validator(mode="after")
    def _check_guidance(self) -> "ConditionalConfig":
        if self.guidance_scale != 1 and not self.label_dropout:
            raise ValueError(
                "guidance_scale: needs a network that is trained without labels too; set label_dropout: 0.1"
            )
        return self


class ConditionalTrainer(GenerativeTrainer):
    """Trains a generative model, conditioned on classes where the network has ``num_labels``.

    The column ``labels`` is int64 ``[N]``, -100 for none. A subclass states ``name``, and defines `loss` and
    `generate_rows`.
    """

    config: ConditionalConfig
    label_dropout_stream: ClassVar[int] = 2
    """The stream of noise for ``label_dropout``; a subclass that draws other numbers of it states another."""

    @abstractmethod
    def generate_rows(self, draw: Tensor, condition: Condition = NO_CONDITION) -> Tensor:
        """Returns a generated row of ``condition`` for each number in ``draw``, int64 ``[n]``: ``[n, ...]``; see
        `GenerativeTrainer.generate_rows`."""

    @property
    def num_labels(self) -> int:
        """Classes that the network can be conditioned on."""
        return int(getattr(self.model.module, "num_labels", 0))

    def targets(self, batch: Batch) -> int:
        """Returns the number of rows, those without a label included."""
        return len(batch["rows"])

    def labels(self, batch: Batch) -> Tensor | None:
        """Returns the labels of a batch, int64 ``[N]``, in training without those that ``label_dropout`` leaves out;
        None for a network that reads none."""
        if not self.num_labels:
            return None
        labels: Tensor = batch["labels"]
        if not (self.config.label_dropout and self.model.module.training):
            return labels
        numbers = self.uniform(batch["draw"], stream=self.label_dropout_stream)
        return labels.masked_fill(numbers < self.config.label_dropout, IGNORE_INDEX)

    def sample(self, count: int, labels: Tensor | None = None, *, guidance_scale: float | None = None) -> Tensor:
        """Returns ``count`` generated rows, ``[count, ...]``, from the same noise every time; of the averaged weights
        if the callback `ema` keeps them.

        ``labels`` are those that a network with labels is conditioned on, int64 ``[count]``, -100 for none; by default
        all classes in turn. ``guidance_scale`` is by default that of the recipe.
        """
        if not self.num_labels:
            labels = None
        elif labels is None:
            labels = torch.arange(count, device=self.device) % self.num_labels
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        return self._sample(count, lambda draw: self.generate_rows(draw, Condition(labels, scale)))

    def check_recipe(self) -> None:
        """Raises `RecipeError` for ``label_dropout`` with a network that reads no labels."""
        super().check_recipe()
        if self.config.label_dropout and not getattr(self.config.model, "num_labels", True):
            raise RecipeError("label_dropout: the network reads no labels; set model.num_labels, or remove it")

    def check(self) -> None:
        """Raises `RecipeError` where `check_recipe` does, and `DataError` for data without a label that the network can
        read."""
        super().check()
        if self.config.label_dropout and not self.num_labels:
            raise RecipeError("label_dropout: the network reads no labels; set model.num_labels, or remove it")
        for name, columns in self.tables("labels").items() if self.num_labels else ():
            labels = columns["labels"]
            known = labels[labels != IGNORE_INDEX]
            is_right = labels.dim() == 1 and labels.dtype == torch.int64
            if not is_right or bool(((known < 0) | (known >= self.num_labels)).any()):
                raise DataError(
                    f"{name}: expected int64 labels from 0 to {self.num_labels - 1}, one for each row, -100 for none; "
                    f"they are {labels.dtype} {list(labels.shape)}, up to {labels.max().item():g}"
                )
