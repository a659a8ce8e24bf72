"""Makes a learning rate schedule. The base of every scheduler factory."""

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

from torch.optim import Optimizer

from arctic_training.callback.hooks import hook
from arctic_training.component import Factory
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.errors.types import RecipeError

C = TypeVar("C", bound=SchedulerConfig)


class SchedulerFactory(Factory[C, Any], kind="scheduler_factory"):
    """A subclass writes `create_scheduler`. Every length is in optimizer updates."""

    config_type: ClassVar[type[ComponentConfig]] = SchedulerConfig

    def __call__(self, *args: Any) -> Any:
        """Raises `RecipeError` when the warm-up is longer than the run."""
        (optimizer,) = args
        warmup, horizon = self.trainer.warmup_steps, self.trainer.training_horizon
        if 0 < horizon < warmup:  # a run of no update, which evaluates, may keep the schedule of one that trains
            raise RecipeError(f"scheduler: a warm-up of {warmup} updates is longer than the run, which has {horizon}")
        return self.create_scheduler(optimizer)

    @hook("create_scheduler")
    @abstractmethod
    def create_scheduler(self, optimizer: Optimizer) -> Any:
        """A schedule, shaped like torch's, that is stepped after every update."""
