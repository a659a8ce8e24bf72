"""Metrics of the library torchmetrics: of the classes that a trainer predicts, and of generated texts."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor

from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.distributed import collectives
from arctic_training.errors.types import InputError
from arctic_training.evaluation.evaluator import Evaluator
from arctic_training.evaluation.scorer import Scorer
from arctic_training.metrics import parent_set, reported_sets
from arctic_training.registry import suggest
from arctic_training.state import isolated_eval

if TYPE_CHECKING:
    from torchmetrics import Metric

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a word of the name of a class ends."""
_SEVERAL_REFERENCES = ("BLEUScore", "CHRFScore", "ExtendedEditDistance", "ROUGEScore", "TranslationEditRate")
"""Metrics of texts, and bases of others, that compare each text with a list of references."""


class TorchmetricsConfig(ComponentConfig):
    """Keys of the evaluator `torchmetrics`."""

    libraries = {"torchmetrics": "arctic_training[torchmetrics]"}

    metric: str = Field(pattern=r"^\w+(\.\w+)*$")
    """The class, by its place in the library: ``classification.MulticlassF1Score``."""
    kwargs: dict[str, Any] = {}
    """Its arguments, such as ``num_classes``."""
    name: str = ""
    """Name among the metrics of the run; by default that of the class: ``multiclass_f1_score``."""

    @property
    def label(self) -> str:
        """The name among the metrics of the run."""
        return self.name or re.sub(_WORDS, "_", self.metric.rpartition(".")[2]).lower()


class _Loader(Protocol):
    def seek(self, epoch: int, row: int) -> None: ...

    def __iter__(self) -> Iterator[object]: ...


class TorchmetricsEvaluator(Evaluator[TorchmetricsConfig]):
    """Measures the classes that a trainer predicts, as ``<name>/<evaluation set>``.

    It is for `classifier` and `tensor_classifier`, and any trainer with a method ``predictions(batch)``.
    The metric receives probabilities, and a binary one those of the second of two classes. What all ranks predict for a
    batch is put together in the order of the set, so that the metric is that of the whole set on one process.
    """

    name = "torchmetrics"

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `InputError` for a class or argument that there is not, and a trainer without predictions."""
        where = f"evaluators: torchmetrics: {self.config.metric}"
        make_metric(self.config, where)
        if not callable(getattr(trainer, "predictions", None)):
            raise InputError(f"{where} measures predictions of classes, and type: {trainer.config.type} makes none")

    def check(self, trainer: TrainerView) -> None:
        """Raises `InputError` for a metric that fails on a first batch."""
        if not trainer.has_weights:  # its predictions are no numbers
            return
        where = f"evaluators: torchmetrics: {self.config.metric}"
        with isolated_eval(engine.module for engine in trainer.engines.values()):
            for name, loader in trainer.eval_loaders.items():
                try:
                    self._measure(trainer, loader, [make_metric(self.config, where)], most=1)
                except Exception as error:
                    raise InputError(f"{where} fails on the first batch of {name}: {_line(error)}") from error

    def metrics(self, sets: Sequence[str]) -> list[str] | None:
        """Returns ``<name>/<evaluation set>``, of a metric of several numbers each; None for one that computes nothing
        of a row of each class."""
        metric = make_metric(self.config, f"evaluators: torchmetrics: {self.config.metric}")
        try:
            with warnings.catch_warnings(action="ignore"):
                metric.update(*_one_of_each_class(metric))
                labels = list(numbers(metric.compute(), self.config.label))
        except Exception:
            return None
        return [f"{label}/{name}" for name in sets for label in labels]

    def __call__(self, trainer: TrainerView) -> dict[str, float]:
        where = f"evaluators: torchmetrics: {self.config.metric}"
        metrics = {name: make_metric(self.config, where) for name in reported_sets(trainer.eval_loaders)}
        for name, loader in trainer.eval_loaders.items():
            self._measure(trainer, loader, [metrics[one] for one in (parent_set(name), name) if one])
        return {
            f"{label}/{name}": value
            for name, metric in metrics.items()
            for label, value in numbers(metric.compute(), self.config.label).items()
        }

    def _measure(self, trainer: TrainerView, loader: _Loader, metrics: "Sequence[Metric]", most: int = 0) -> None:
        """Updates ``metrics`` by the set of ``loader``, or by its first ``most`` batches. All ranks call it."""
        predict = cast(Callable[[object], tuple[Tensor, Tensor]], getattr(trainer, "predictions"))  # noqa: B009
        is_binary = type(metrics[0]).__name__.startswith("Binary")
        loader.seek(0, 0)
        for number, batch in enumerate(loader, 1):
            predicted, labels = (one.cpu() for one in predict(batch))
            if is_binary and predicted.shape[1:] == (2,) and labels.dim() == 1:
                predicted = predicted[:, 1]
            parts = collectives.all_gather_object((predicted, labels))
            predicted, labels = (torch.cat(several) for several in zip(*parts, strict=True))
            for metric in metrics if len(labels) else ():
                metric.update(predicted, labels)
            if number == most:
                break


class TorchmetricsScorerConfig(TorchmetricsConfig):
    """Keys of the scorer `torchmetrics`."""

    metric: str = Field(pattern=r"^\w+(\.\w+)*$")
    """The class, by its place in the library: ``text.BLEUScore``, ``text.ROUGEScore``."""
    value: str = ""
    """Which of several numbers is the score, such as ``rougeL_fmeasure``."""


class TorchmetricsScorer(Scorer[TorchmetricsScorerConfig]):
    """Compares texts by a metric of torchmetrics.

    What an evaluation logs is the metric of the whole set, which of BLEU and of error rates is not the mean of those of
    its texts. An error rate is better the lower it is.
    """

    name = "torchmetrics"

    @property
    def label(self) -> str:
        return self.config.label

    def check(self) -> None:
        """Raises `InputError` for a class or argument that there is not."""
        make_metric(self.config, f"scorers: torchmetrics: {self.config.metric}")

    def __call__(self, generated: str, reference: str) -> float:
        return self.corpus_score([generated], [reference])

    def corpus_score(self, generated: Sequence[str], references: Sequence[str]) -> float:
        """Returns the metric of several texts together. Raises `InputError` for a metric that cannot be used."""
        where = f"scorers: torchmetrics: {self.config.metric}"
        metric = make_metric(self.config, where)
        takes_several = any(base.__name__ in _SEVERAL_REFERENCES for base in type(metric).__mro__)
        metric.update(list(generated), [[one] for one in references] if takes_several else list(references))
        values = numbers(metric.compute(), self.config.label)
        key = self.config.value or next(iter(values))
        if key not in values or (len(values) > 1 and not self.config.value):
            raise InputError(f"{where}: it has several numbers; give one as value: {', '.join(values)}")
        return values[key]


def make_metric(config: TorchmetricsConfig, where: str) -> "Metric":
    """Returns the metric that ``config`` names. Raises `InputError`, which begins with ``where``, if there is none."""
    from torchmetrics import Metric

    path, _, name = config.metric.rpartition(".")
    try:
        home: object = import_module(".".join(filter(None, ("torchmetrics", path))))
    except ImportError as error:
        raise InputError(f"{where}: {_line(error)}") from error
    kind = getattr(home, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        known = [one for one, value in vars(home).items() if isinstance(value, type) and issubclass(value, Metric)]
        raise InputError(f"{where}: there is no such metric; {suggest(name, sorted(known))}")
    try:
        # every rank has what all have predicted, and scores texts of its own
        metric: Metric = kind(**{**config.kwargs, "sync_on_compute": False})
    except Exception as error:
        raise InputError(f"{where}: kwargs: {_line(error)}") from error
    return metric


def _one_of_each_class(metric: "Metric") -> tuple[Tensor, Tensor]:
    """Returns probabilities and labels as a trainer gives them to ``metric``: ``[rows, classes]`` and ``[rows]``."""
    if count := getattr(metric, "num_labels", None):
        labels = torch.eye(2, count, dtype=torch.long)
        return (labels + 1) / 3, labels
    if count := getattr(metric, "num_classes", None):
        return (torch.eye(count) + 1) / (count + 1), torch.arange(count)
    return torch.tensor([0.25, 0.75]), torch.tensor([0, 1])


def numbers(computed: object, label: str) -> dict[str, float]:
    """Returns what a metric computes as numbers by name: a mapping by its keys, of a tensor each element by its index.

    Raises ValueError for anything else.
    """
    if isinstance(computed, Mapping):
        return {name: one for key, value in computed.items() for name, one in numbers(value, str(key)).items()}
    if isinstance(computed, Tensor) and not computed.dim():
        return {label: computed.item()}
    if isinstance(computed, Tensor):
        return {
            name: one
            for number, value in enumerate(computed)
            for name, one in numbers(value, f"{label}_{number}").items()
        }
    raise ValueError(f"it computes a {type(computed).__name__}, and no number")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
