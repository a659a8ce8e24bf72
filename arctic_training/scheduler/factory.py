"""The base of factories of learning rate schedules."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from arctic_training.callback.hooks import hook
from arctic_training.component import Factory
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.errors.types import RecipeError

C = TypeVar("C", bound=SchedulerConfig)


class SchedulerFactory(Factory[C, LRScheduler], kind="scheduler_factory"):
    """Makes a learning rate schedule. A subclass defines `create_scheduler`. Every length is in optimizer steps."""

    config_type: ClassVar[type[ComponentConfig]] = SchedulerConfig

    def __call__(self, optimizer: Optimizer) -> LRScheduler:
        """Returns the schedule of an optimizer. Raises `RecipeError` where `check` does."""
        self.check()
        schedule = self.create_scheduler(optimizer)
        if self.config.min_lr:
            self._raise_end(schedule)
        return schedule

    def check(self) -> None:
        """Raises `RecipeError` when the warm-up is longer than the run.

        Also called before data are prepared, when the length of the run is known where ``train_iters`` gives it, and
        else 0.
        """
        warmup, horizon = self.trainer.warmup_steps, self.trainer.training_horizon
        if 0 < horizon < warmup:  # a run of no steps, which only evaluates, may keep the schedule of one that trains
            raise RecipeError(f"scheduler: a warm-up of {warmup} steps is longer than the run, which has {horizon}")

    def _raise_end(self, schedule: LRScheduler) -> None:
        """Has what of ``schedule`` is above ``min_lr`` follow it from the end of the warm-up on.

        A share s of the peak p becomes the rate m + (p - m) s. Raises `RecipeError` for a peak below m, and for a
        schedule that is no share of a peak.
        """
        minimum, warmup, peaks = self.config.min_lr, self.trainer.warmup_steps, [*map(float, schedule.base_lrs)]
        if not isinstance(schedule, LambdaLR):
            raise RecipeError(f"scheduler.min_lr: {type(schedule).__name__} is no share of a peak; remove it")
        if minimum > (peak := min(peaks)):
            raise RecipeError(f"scheduler.min_lr: {minimum:g} is above a learning rate of the optimizer, {peak:g}")
        schedule.lr_lambdas = [
            _above(share, minimum / peak, warmup) for share, peak in zip(schedule.lr_lambdas, peaks, strict=True)
        ]

    @hook("create_scheduler")
    @abstractmethod
    def create_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Returns a schedule with torch's interface, which the trainer advances after every step."""


def _above(share: Callable[[int], float], floor: float, warmup: int) -> Callable[[int], float]:
    """Returns ``share`` of the peak by step, from step ``warmup`` on with 0 moved to ``floor``."""

    def scaled(step: int) -> float:
        value = float(share(step))
        return value if step < warmup else floor + (1 - floor) * value

    return scaled
