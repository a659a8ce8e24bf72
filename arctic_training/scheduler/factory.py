"""The base of factories of learning rate schedules."""

from abc import abstractmethod
from typing import ClassVar, TypeVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

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
        """Returns the schedule of an optimizer. Raises `RecipeError` when the warm-up is longer than the run."""
        warmup, horizon = self.trainer.warmup_steps, self.trainer.training_horizon
        if 0 < horizon < warmup:  # a run of no steps, which only evaluates, may keep the schedule of one that trains
            raise RecipeError(f"scheduler: a warm-up of {warmup} steps is longer than the run, which has {horizon}")
        return self.create_scheduler(optimizer)

    @hook("create_scheduler")
    @abstractmethod
    def create_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Returns a schedule with torch's interface, which the trainer advances after every step."""
