"""End a run in good order before its time is over."""

import os
import time
from typing import Any

from arctic_training.callback.callback import Callback
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.duration import Duration
from arctic_training.logging import logger

STOPPED_EARLY = 75
"""Exit code of a run that saved and ended before it was over, to be started again: EX_TEMPFAIL."""


class TimeLimitConfig(ComponentConfig):
    limit: Duration = 0.0
    """How long this start of the run may take; 0: as long as SLURM allows, or without an end."""


class TimeLimit(Callback):
    """Asks the run to stop while there is time for two more updates as long as the longest, evaluations and saves
    included, and to spare: a twentieth of the limit, fifteen seconds at least and five minutes at most."""

    name = "time_limit"
    config_type = TimeLimitConfig

    def __init__(self, config: TimeLimitConfig) -> None:
        super().__init__(config)
        allowed = [config.limit] if config.limit else []
        if end := os.environ.get("SLURM_JOB_END_TIME"):
            allowed.append(float(end) - time.time())
        self._allowed = min(allowed, default=float("inf"))
        self._began = self._last = time.monotonic()
        self._longest = 0.0

    def post_init(self, trainer: Any) -> None:
        if self.config.limit and not any(engine.resumable for engine in trainer.checkpointers):
            logger.warning("time_limit: the recipe has no checkpoint that the run could be gone on with from")

    def pre_train(self, trainer: Any) -> None:
        self._last = time.monotonic()

    def post_after_update(self, trainer: Any) -> None:
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        spare = 2 * self._longest + min(max(self._allowed / 20, min(15.0, self._allowed / 4)), 300.0)
        if now - self._began + spare > self._allowed:
            trainer.request_stop(f"its time is nearly over: {self._allowed:.0f} s", STOPPED_EARLY)
