"""The length of a run, in epochs and in optimizer steps."""

import math
import sys

from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.batching.loader import Loader
from arctic_training.state import Progress


class ScheduleMixin:
    """Part of `Trainer`: lengths in optimizer steps, from the recipe, the data and the progress."""

    config: TrainerConfig
    progress: Progress
    train_loader: Loader | None = None
    stop_reason: str = ""
    _started_at: int = 0
    """The step at which this process started or resumed the run."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, a short last window included; 0 for a stream without ``epoch_length``."""
        if self.config.epoch_length:
            return int(self.config.epoch_length)
        loader = self.train_loader
        return math.ceil(len(loader) / self.config.gradient_accumulation_steps) if loader is not None else 0

    @property
    def epochs_completed(self) -> float:
        """Completed epochs as a float; 0.0 for a stream without ``epoch_length``."""
        loader = self.train_loader
        rows = loader.rows if loader is not None else 0
        # the last micro-batches of an epoch may reach beyond its rows
        return self.progress.epoch + (min(self.progress.sample_index / rows, 1) if rows else 0)

    @property
    def total_epochs(self) -> int:
        """The largest number of epochs of the run."""
        if self.config.train_iters:
            return sys.maxsize
        repeats = -(-int(self.config.min_iterations) // max(1, self.steps_per_epoch))
        return max(int(self.config.epochs), repeats)

    @property
    def training_horizon(self) -> int:
        """Optimizer steps of the whole run, those already taken included."""
        return int(self.config.train_iters) or self.total_epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of warm-up."""
        return int(self.config.scheduler.warmup(self.training_horizon, self.steps_per_epoch))

    @property
    def last_step(self) -> int | None:
        """The step after which the run ends at the latest, before its epochs are over; None without a limit."""
        limits = [self.config.train_iters, self.config.exit_iteration]
        if self.config.exit_iteration_this_run:
            limits.append(self._started_at + self.config.exit_iteration_this_run)
        return min((int(limit) for limit in limits if limit), default=None)

    @property
    def expected_end(self) -> int | None:
        """The step at which the run is expected to end; None for a run of unknown length."""
        return min((int(one) for one in (self.training_horizon, self.last_step) if one), default=None)

    @property
    def plan_reached(self) -> str:
        """The limit of the recipe that is reached, so that nothing is left to train; empty while something is."""
        for key in ("train_iters", "exit_iteration"):
            if (limit := int(getattr(self.config, key))) and self.progress.step >= limit:
                return f"{key} is {limit}"
        return f"all {self.total_epochs} epochs are over" if self.progress.epoch >= self.total_epochs else ""

    @property
    def epochs(self) -> range:
        """The remaining epochs, the current one included."""
        over = self.last_step is not None and self.progress.step >= self.last_step
        return range(0) if over or self.stop_reason else range(self.progress.epoch, self.total_epochs)
