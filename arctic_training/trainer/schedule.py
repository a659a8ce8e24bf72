"""How long a run is, in epochs and in optimizer updates."""

import math
import sys
from typing import Any

from arctic_training.data.batching.loader import Loader
from arctic_training.state import Progress


class ScheduleMixin:
    """What follows from the recipe, the data and the progress. Every length is in optimizer updates."""

    config: Any
    progress: Progress
    train_loader: Loader | None = None
    stop_reason: str = ""
    _started_at: int = 0
    """The update that this start of the run went on from."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates in an epoch; a short last window is one too. 0 for data without an end."""
        loader = self.train_loader
        return math.ceil(len(loader) / self.config.gradient_accumulation_steps) if loader is not None else 0

    @property
    def epochs_completed(self) -> float:
        """How often the data were gone through, with a fraction; 0 for data without an end."""
        loader = self.train_loader
        rows = loader.rows if loader is not None else 0
        # the last micro-batches of an epoch may reach beyond its rows
        return self.progress.epoch + (min(self.progress.sample_index / rows, 1) if rows else 0)

    @property
    def total_epochs(self) -> int:
        """How often the data are gone through in the whole run, at most."""
        if self.config.train_iters:
            return sys.maxsize
        repeats = -(-int(self.config.min_iterations) // max(1, self.steps_per_epoch))
        return max(int(self.config.epochs), repeats)

    @property
    def training_horizon(self) -> int:
        """Optimizer updates in the whole run, not only in what is left of it."""
        return int(self.config.train_iters) or self.total_epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """Optimizer updates of warm-up."""
        return int(self.config.scheduler.warmup(self.training_horizon, self.steps_per_epoch))

    @property
    def last_step(self) -> int | None:
        """The update after which this run ends, be its epochs over or not."""
        limits = [self.config.train_iters, self.config.exit_iteration]
        if self.config.exit_iteration_this_run:
            limits.append(self._started_at + self.config.exit_iteration_this_run)
        return min((int(limit) for limit in limits if limit), default=None)

    @property
    def plan_reached(self) -> str:
        """What of the recipe's plan is reached, so that there is nothing left to train; empty while there is."""
        for key in ("train_iters", "exit_iteration"):
            if (limit := int(getattr(self.config, key))) and self.progress.step >= limit:
                return f"{key} is {limit}"
        return f"all {self.total_epochs} epochs are over" if self.progress.epoch >= self.total_epochs else ""

    @property
    def epochs(self) -> range:
        """The epochs that are left, the one under way among them."""
        over = self.last_step is not None and self.progress.step >= self.last_step
        return range(0) if over or self.stop_reason else range(self.progress.epoch, self.total_epochs)
