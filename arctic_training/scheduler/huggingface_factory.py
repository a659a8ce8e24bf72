"""The schedules of transformers, by their names there."""

from typing import Any

from torch.optim import Optimizer

from arctic_training.config.scheduler import SchedulerConfig
from arctic_training.errors import RecipeError
from arctic_training.registry import nearest
from arctic_training.scheduler.factory import SchedulerFactory


class HFSchedulerConfig(SchedulerConfig):
    name: str = "linear"
    """Any schedule of transformers: linear, cosine, constant_with_warmup, cosine_with_min_lr, ..."""
    scheduler_specific_kwargs: dict[str, Any] = {}
    """What that schedule wants beside warm-up and length."""


class HFSchedulerFactory(SchedulerFactory[HFSchedulerConfig]):
    """Any schedule of transformers, with warm-up."""

    name = "huggingface"
    config_type = HFSchedulerConfig

    def create_scheduler(self, optimizer: Optimizer) -> Any:
        from transformers import SchedulerType, get_scheduler

        known = [kind.value for kind in SchedulerType]
        if self.config.name not in known:
            raise RecipeError(f"scheduler.name: no schedule is named {self.config.name!r}; {nearest(self.config.name, known)}")
        try:
            return get_scheduler(
                self.config.name,
                optimizer,
                num_warmup_steps=self.trainer.warmup_steps,
                num_training_steps=self.trainer.training_horizon,
                scheduler_specific_kwargs=self.config.scheduler_specific_kwargs,
            )
        except (TypeError, ValueError) as error:
            raise RecipeError(f"scheduler: the schedule {self.config.name!r} cannot be made: {error}") from error
