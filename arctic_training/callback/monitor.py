"""Callbacks that follow a metric of the evaluations: which one, and what counts as better."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanFloat
from arctic_training.errors.types import RecipeError
from arctic_training.metrics import reported_sets
from arctic_training.registry import did_you_mean


class MonitorConfig(ComponentConfig):
    """Options of every callback that follows a metric."""

    follows_evaluations: ClassVar[bool] = True
    """A recipe with this section needs ``eval_interval``."""

    monitor: str | None = Field(default=None, min_length=1)
    """A metric of the evaluations, such as ``exact_match/eval`` (default: the loss on the first evaluation set)."""
    mode: Literal["min", "max"] | None = None
    """The direction in which the metric improves (default: ``min`` for a loss; any other metric needs it)."""
    min_delta: HumanFloat = Field(default=0.0, ge=0)
    """How much better than the best a value has to be to count as better."""

    @model_validator(mode="after")
    def _check_mode(self) -> "MonitorConfig":
        if self.monitor is not None and self.mode is None and not self.monitor.startswith(("loss", "perplexity")):
            raise ValueError(f"mode: give min or max, whether a small or a large {self.monitor} is good")
        return self

    def is_better(self, value: float, than: float, by: float = 0.0) -> bool:
        """Returns whether ``value`` is better than ``than`` by more than ``by``; False for NaN."""
        return value > than + by if self.mode == "max" else value < than - by


M = TypeVar("M", bound=MonitorConfig)


class Monitor(Callback[M]):
    """Base of callbacks that follow a metric. A subclass defines `observe`, which is called once for each step that is
    evaluated, on every rank with the same value."""

    config_type: ClassVar[type[ComponentConfig]] = MonitorConfig

    def __init__(self, config: M) -> None:
        super().__init__(config)
        self.metric = config.monitor or ""
        self.best = math.nan
        """The best value so far; NaN before the first."""
        self.best_step = -1
        self.waited = 0
        """Evaluations since the best."""
        self._evaluated_step = -1

    @abstractmethod
    def observe(self, trainer: TrainerView, value: float, values: Mapping[str, float]) -> None:
        """Acts on ``value`` of the metric, after `best` and `waited` were updated; ``values`` are all metrics."""

    def check(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for the loss on an evaluation set that there is not. A metric that neither recipe nor
        data show is refused by `post_evaluate`, when the first evaluation is over."""
        known = [f"loss/{name}" for name in reported_sets(trainer.eval_loaders)]
        self.metric = self.metric or next(iter(known), "loss/eval")
        if self.metric.startswith("loss/") and self.metric not in known:
            raise RecipeError(f"callbacks.{self.name}.monitor: {unknown_metric(self.metric, known)}")

    def post_evaluate(self, trainer: TrainerView, values: Mapping[str, float]) -> None:
        """Compares the metric with the best. Raises `RecipeError` when the evaluation has not measured it."""
        if self.metric not in values:
            raise RecipeError(f"callbacks.{self.name}.monitor: {unknown_metric(self.metric, list(values))}")
        if trainer.progress.step <= self._evaluated_step:  # the last step may be evaluated again
            return
        self._evaluated_step = trainer.progress.step
        value = float(values[self.metric])
        if self.config.is_better(value, self.best, self.config.min_delta) or (
            self.best != self.best and value == value
        ):
            self.best, self.best_step, self.waited = value, trainer.progress.step, 0
        else:
            self.waited += 1
        self.observe(trainer, value, values)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_step": self.best_step,
            "waited": self.waited,
            "evaluated_step": self._evaluated_step,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.best, self.best_step = float(state["best"]), int(state["best_step"])
        self.waited, self._evaluated_step = int(state["waited"]), int(state["evaluated_step"])


def unknown_metric(metric: str, known: list[str]) -> str:
    """Returns that no evaluation measures ``metric``, and which of those that are ``known`` may be meant."""
    there_are = f"there are: {', '.join(known) or 'none'}"
    return " ".join(filter(None, [f"no evaluation measures {metric};", did_you_mean(metric, known), there_are]))
