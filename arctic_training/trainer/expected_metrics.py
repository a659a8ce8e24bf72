"""The metrics of a run's evaluations, as far as its recipe shows them, and the keys of the recipe that name one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from arctic_training.callback.callback import Callback
from arctic_training.callback.monitor import Monitor, unknown_metric
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.data import DataConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.factories.base import DataFactory
from arctic_training.errors.types import RecipeError
from arctic_training.evaluation.evaluator import Evaluator
from arctic_training.metrics import reported_sets
from arctic_training.registry import numbered, stated

_MEASURING = ("loss", "finalize_eval_metrics", "build_rollout")
"""Methods of a trainer that record what an evaluation measures."""


class Evaluated(Protocol):
    """The attributes of a `Trainer` that say what its evaluations measure."""

    @property
    def config(self) -> TrainerConfig:
        """The recipe."""

    @property
    def eval_metrics(self) -> Sequence[str] | None:
        """The names of all that they may record beside the loss; None where only an evaluation shows them."""

    @property
    def callbacks(self) -> Sequence[tuple[str, object]]:
        """The listeners, in their order."""

    @property
    def listeners(self) -> Mapping[str, Callback[ComponentConfig]]:
        """The callbacks of the recipe by name."""

    @property
    def evaluators(self) -> Sequence[Evaluator[ComponentConfig]]:
        """The evaluators of the recipe."""


class ExpectedMetrics(NamedTuple):
    """Names of metrics of evaluations."""

    names: list[str]
    """Those that the recipe shows, the loss on the first set before the others."""
    complete: bool
    """True when evaluations have no other metric than these."""


def check_metrics(trainer: Evaluated) -> None:
    """Raises `RecipeError` for a key of the recipe of ``trainer`` that names a metric which no evaluation has, as far
    as the recipe shows it."""
    if (expected := expected_metrics(trainer)) is None:
        return
    for key, metric in _named(trainer):
        if metric not in expected.names and (expected.complete or metric.startswith("loss/")):
            raise RecipeError(f"{key}: {unknown_metric(metric, expected.names)}")


def expected_metrics(trainer: Evaluated) -> ExpectedMetrics | None:
    """Returns the metrics of the evaluations of ``trainer``, which may have no parts yet; None where the recipe does
    not show even the evaluation sets, because a class of the user's own loads them."""
    data = trainer.config.data
    factory = DataFactory[DataConfig].registered(data.type)
    if any(not one.__module__.startswith("arctic_training.") for one in (factory.load_evaluation, factory.__call__)):
        return None
    sets = reported_sets(data.evaluation_sets)
    states = stated(type(trainer), "eval_metrics", *_MEASURING) is not None
    own = trainer.eval_metrics if states else None
    listens = any(event.endswith("val_metrics") for event, _ in trainer.callbacks)
    complete = own is not None and not listens
    names = [f"{metric}/{one}" for metric in ("loss", *(own or ())) for one in sets]
    for evaluator in trainer.evaluators:
        measured = evaluator.metrics(sets)
        complete = complete and measured is not None
        names += numbered(measured or (), taken=names)
    return ExpectedMetrics(names, complete)


def _named(trainer: Evaluated) -> Iterator[tuple[str, str]]:
    """Yields the keys of the recipe that name a metric, each with that metric."""
    for name, callback in trainer.listeners.items():
        if isinstance(callback, Monitor) and callback.metric:
            yield f"callbacks.{name}.monitor", callback.metric
    for section in trainer.config.checkpoint:
        if section.enabled and section.best_metric:
            yield "checkpoint.best_metric", section.best_metric
