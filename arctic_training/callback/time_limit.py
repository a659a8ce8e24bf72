"""Stops and saves a run before its time limit."""

import os
import time

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import Duration
from arctic_training.logging import logger

STOPPED_EARLY = 75
"""Exit code of a run that saved and stopped early, to be started again: EX_TEMPFAIL."""


class TimeLimitConfig(ComponentConfig):
    """Options of the time limit."""

    limit: Duration = 0.0
    """Time for this start of the run; 0: the limit of SLURM, or none."""


class TimeLimit(Callback[TimeLimitConfig]):
    """Stops and saves the run before its time limit.

    It requests a stop when the time left is less than two of the longest steps so far, evaluations and saves included,
    plus a reserve: a twentieth of the limit, but at least 15 s and at most 5 min.
    """

    name = "time_limit"

    def __init__(self, config: TimeLimitConfig) -> None:
        super().__init__(config)
        allowed = [config.limit] if config.limit else []
        if end := os.environ.get("SLURM_JOB_END_TIME"):
            allowed.append(float(end) - time.time())
        self._allowed = min(allowed, default=float("inf"))
        self._began = self._last = time.monotonic()
        self._longest = 0.0

    def post_init(self, trainer: TrainerView) -> None:
        """Warns when the run has a limit but no checkpoint from which it could be resumed."""
        if self.config.limit and not any(engine.resumable for engine in trainer.checkpointers):
            logger.warning("time_limit: the recipe has no checkpoint section from which the run could be resumed")

    def pre_train(self, trainer: TrainerView) -> None:
        """Starts to measure the first step."""
        self._last = time.monotonic()

    def post_after_update(self, trainer: TrainerView) -> None:
        """Requests a stop when the time left is short."""
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        spare = 2 * self._longest + min(max(self._allowed / 20, min(15.0, self._allowed / 4)), 300.0)
        if now - self._began + spare > self._allowed:
            trainer.request_stop(f"its time is nearly over: {self._allowed:.0f} s", STOPPED_EARLY)
