"""Classifiers: of texts, of the words of a text, and of anything that is a tensor; and regression on texts."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.labeled_text import LabeledTextDataFactory
from arctic_training.errors.types import DataError, ModelError
from arctic_training.loss.classification import (
    class_counts,
    classification_loss,
    count_right,
    macro_f1,
    regression_loss,
)
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.causal_lm import causal_model
from arctic_training.objectives.language_model import LanguageModelTrainer
from arctic_training.objectives.tensor import TensorTrainer
from arctic_training.trainer.role import Role
from arctic_training.trainer.trainer import Trainer
from arctic_training.trainer.window import to_device

_COUNTS = ("right", "predicted", "true")


class ClassifierConfig(TrainerConfig):
    """Keys of every classifier."""

    label_smoothing: HumanFloat = Field(default=0.0, ge=0, lt=1)
    """Share of each label's probability that is spread over all labels."""
    class_weights: list[HumanFloat] = []
    """What the losses of each label are multiplied by, in the order of the labels, such as its inverse frequency; the
    loss is still a mean over the labels."""

    @field_validator("class_weights")
    @classmethod
    def _check_weights(cls, weights: list[float], info: ValidationInfo) -> list[float]:
        model = info.data.get("model")
        count = len(getattr(model, "labels", ())) or getattr(model, "num_labels", getattr(model, "outputs", None))
        if weights and min(weights) < 0:
            raise ValueError(f"{min(weights):g} is negative")
        if weights and count and count != len(weights):
            raise ValueError(f"{len(weights)} weights, and the model has {count} labels; give one for each")
        return weights


class BaseClassifier(Trainer):
    """Base of classifiers; a subclass defines `logits`. The loss of a step is the mean over the window's labels."""

    config: ClassifierConfig
    eval_metrics: ClassVar[tuple[str, ...] | None] = ("accuracy", "macro_f1")

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Returns the scores of the classes, ``[..., classes]``, for labels ``batch["labels"]`` ``[...]``."""

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the labels of the window: a float32 scalar in nats."""
        logits, labels, items = self.logits(batch), batch["labels"], batch["num_items_in_batch"]
        weights = self.config.class_weights
        total = classification_loss(
            logits,
            labels,
            class_weights=torch.tensor(weights, device=logits.device) if weights else None,
            label_smoothing=self.config.label_smoothing,
        )
        self.record("accuracy", count_right(logits, labels) / items)
        if not torch.is_grad_enabled():
            for name, counts in zip(_COUNTS, class_counts(logits, labels).unbind(), strict=True):
                for number, count in enumerate(counts.unbind()):
                    self.record(f"{name}#{number}", count / items)
        return total.div(items)

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns what the evaluator `torchmetrics` compares, of everything in ``batch`` that has a label: fp32
        probabilities ``[n, classes]``, and int64 labels ``[n]``, or, where there may be several, ``[n, classes]``, 0
        or 1 each, with -100 for none."""
        batch = to_device(batch, self.device)
        logits, labels = self.logits(batch).float(), batch["labels"]
        if labels.is_floating_point():
            counted = (labels != IGNORE_INDEX).any(-1)
            return logits[counted].sigmoid(), labels[counted].long()
        counted = labels != IGNORE_INDEX
        return logits[counted].softmax(-1), labels[counted].long()

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Computes the F1 of the whole evaluation set, which no mean over batches gives."""
        classes = sum(name.startswith(f"{_COUNTS[0]}#") for name in means)
        counts = [[means.pop(f"{name}#{number}") for number in range(classes)] for name in _COUNTS]
        return {**means, "macro_f1": macro_f1(counts)}


class TextClassifierConfig(ClassifierConfig):
    """Keys of the trainer `classifier`."""

    disable_dropout: bool = False
    """Train without dropout, that of an adapter included."""

    @model_validator(mode="after")
    def _check_regression(self) -> "TextClassifierConfig":
        for key in ("label_smoothing", "class_weights"):
            if getattr(self.model, "task", "") == "regression" and getattr(self, key):
                raise ValueError(f"{key}: with model.task: regression there are no classes; remove it")
        return self


class ClassifierTrainer(BaseClassifier, LanguageModelTrainer):
    """Trains a model to label texts, the words of texts, or to predict a number for each text, by ``model.task``.

    The loss of a number is its squared error. A batch has the keys that `LabeledTextDataFactory` lists.
    """

    name = "classifier"
    config: TextClassifierConfig
    tensor_parallel = True
    data_factory_type: ClassVar[type[DataFactory[Any]]] = LabeledTextDataFactory
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model", tasks=("sequence_classification", "token_classification", "regression")),
    )

    @property
    def is_regression(self) -> bool:
        """True if the model predicts a number for each text."""
        return getattr(self.config.model, "task", "") == "regression"

    @property
    def eval_metrics(self) -> tuple[str, ...] | None:  # type: ignore[override]
        return ("mse",) if self.is_regression else BaseClassifier.eval_metrics

    def check(self) -> None:
        """Marks the model as one of a regression, or whose texts may have several labels, for transformers."""
        super().check()
        if self.is_regression:
            causal_model(self.model).config.problem_type = "regression"
        if getattr(self.config.data, "multi_label", False):
            causal_model(self.model).config.problem_type = "multi_label_classification"

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the labels of the window: a float32 scalar, in nats, or of a
        regression in the square of the unit of the labels."""
        if not self.is_regression:
            return super().loss(batch)
        loss = regression_loss(self.logits(batch), batch["labels"]).div(batch["num_items_in_batch"])
        if not torch.is_grad_enabled():
            self.record("mse", loss)
        return loss

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns what the evaluator `torchmetrics` compares; of a regression outputs and labels, float32 ``[n]``."""
        if not self.is_regression:
            return super().predictions(batch)
        batch = to_device(batch, self.device)
        outputs, labels = self.logits(batch).float().squeeze(-1), batch["labels"]
        return outputs[labels != IGNORE_INDEX], labels[labels != IGNORE_INDEX]

    def finalize_eval_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Computes the F1 of a classifier."""
        return means if self.is_regression else super().finalize_eval_metrics(means)

    def logits(self, batch: Batch) -> Tensor:
        """Returns the scores of the labels: ``[B, classes]``, or ``[B, T, classes]``."""
        logits: Tensor = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits


class TensorClassifierTrainer(BaseClassifier, TensorTrainer):
    """Trains a network to label rows of tensors, such as pictures.

    The data have the columns ``rows`` ``[N, ...]`` and ``labels``: integers ``[N]``, one class each, or floats
    ``[N, classes]``, 0 or 1 each. -100 is no label.
    """

    name = "tensor_classifier"
    config: ClassifierConfig

    def check_data(self) -> None:
        """Raises `DataError` for data without these columns, or with labels that the network has no output for."""
        super().check_data()
        classes = getattr(self.config.model, "outputs", 0) or len(self.config.class_weights)
        for name, columns in self.tables("rows", "labels").items():
            labels = columns["labels"]
            if not labels.dtype.is_signed:
                raise DataError(f"{name}: labels are {labels.dtype}, which cannot hold -100 for no label; give int64")
            if labels.is_floating_point():
                wrong = bool(classes) and labels.shape[1:] != (classes,)
            else:
                known = labels[labels != IGNORE_INDEX]
                wrong = (
                    labels.dim() != 1 or bool((known < 0).any()) or (bool(classes) and bool((known >= classes).any()))
                )
            if wrong:
                raise DataError(
                    f"{name}: expected labels from 0 to {classes - 1} for each row, or {classes} floats; they are "
                    f"{labels.dtype} {list(labels.shape)}, up to {labels.max().item():g}"
                )

    def check(self) -> None:
        """Raises `ModelError` for a network that does not map rows to a score of each class."""
        super().check()
        labels = [columns["labels"] for columns in self.tables("rows", "labels").values()]
        floats = {one.shape[1] for one in labels if one.is_floating_point()}
        most = max((int(one.max()) for one in labels if not one.is_floating_point() and len(one)), default=0)
        for row, logits in self.row_outputs(lambda rows: self.logits({"rows": rows})):
            if logits.dim() != 2 or logits.shape[1] <= most or not floats <= {logits.shape[1]}:
                expected = f"{min(floats)}" if floats else f"more than {most}"
                raise ModelError(
                    f"model: rows of shape {list(row.shape[1:])} become {list(logits.shape[1:])}; the labels need "
                    f"{expected} scores"
                )

    def logits(self, batch: Batch) -> Tensor:
        """Returns the scores of the classes: ``[N, classes]``."""
        logits: Tensor = self.model(self.cast(batch["rows"]))
        return logits
