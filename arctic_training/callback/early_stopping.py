"""Ends a run whose evaluations no longer get better."""

import math
from collections.abc import Mapping

from pydantic import Field

from arctic_training.callback.monitor import Monitor, MonitorConfig
from arctic_training.component import TrainerView
from arctic_training.config.sections.types import HumanFloat


class EarlyStoppingConfig(MonitorConfig):
    """Options of the callback `early_stopping`."""

    patience: int = Field(default=3, ge=1)
    """Evaluations in a row without a better value after which the run ends."""
    check_finite: bool = True
    """End the run when the metric is NaN or infinite."""
    stopping_threshold: HumanFloat | None = None
    """End the run when the metric is this good."""
    divergence_threshold: HumanFloat | None = None
    """End the run when the metric is worse than this."""


class EarlyStopping(Monitor[EarlyStoppingConfig]):
    """Ends the run for good when a metric of the evaluations no longer gets better.

    The reason is saved: the run stays stopped until its recipe changes, or ``allow_changes: [stop]``.
    """

    name = "early_stopping"

    def observe(self, trainer: TrainerView, value: float, values: Mapping[str, float]) -> None:
        if reason := self._reason(value):
            trainer.stop(f"early_stopping: {self.metric} {reason}")

    def _reason(self, value: float) -> str:
        """Returns why the run ends, of the metric; empty when it continues."""
        config = self.config
        if config.check_finite and not math.isfinite(value):
            return f"is {value}"
        if (limit := config.stopping_threshold) is not None and (config.is_better(value, limit) or value == limit):
            return f"is {value:.6g}, which reaches stopping_threshold: {limit:g}"
        if (limit := config.divergence_threshold) is not None and config.is_better(limit, value):
            return f"is {value:.6g}, which is beyond divergence_threshold: {limit:g}"
        if self.waited >= config.patience:
            best = f"{self.best:.6g} after step {self.best_step}" if self.best_step >= 0 else "never a number"
            return f"has not been better for {self.waited} evaluations; the best was {best}"
        return ""
