"""The schedules of transformers, by their names there."""

from typing import Any

from pydantic import field_validator, model_validator
from torch.optim import Optimizer

from arctic_training.config.sections.numbers import read_numbers
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.errors.types import RecipeError
from arctic_training.registry import suggest
from arctic_training.scheduler.factory import SchedulerFactory

_BY_MEASURE = ("reduce_lr_on_plateau", "greedy")
_KNOWN = [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]
"""Stated here, so that a recipe is checked without transformers."""
_WARMUP = {"warmup_ratio", "warmup_steps", "warmup_epochs"}


class HFSchedulerConfig(SchedulerConfig):
    name: str = "linear"
    """Any schedule of transformers: linear, cosine, constant_with_warmup, cosine_with_min_lr, ..."""
    scheduler_specific_kwargs: dict[str, Any] = {}
    """What that schedule wants beside warm-up and length."""

    @field_validator("scheduler_specific_kwargs")
    @classmethod
    def _numbers(cls, told: dict[str, Any]) -> dict[str, Any]:
        return {key: read_numbers(value, float) for key, value in told.items()}

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name in _BY_MEASURE:
            raise ValueError(f"{name} follows a measured value and not the updates; choose another")
        if name not in _KNOWN:
            raise ValueError(f"no schedule is named {name!r}; {suggest(name, _KNOWN)}")
        return name

    @model_validator(mode="after")
    def _is_not_ignored(self) -> "HFSchedulerConfig":
        if self.name.startswith("constant") and (told := self.scheduler_specific_kwargs):
            raise ValueError(f"scheduler_specific_kwargs: {self.name} takes none, and has {', '.join(told)}")
        if self.name == "constant" and any(getattr(self, key) for key in _WARMUP & self.model_fields_set):
            raise ValueError("name: constant has no warm-up; constant_with_warmup has")
        return self


class HFSchedulerFactory(SchedulerFactory[HFSchedulerConfig]):
    """Any schedule of transformers, with warm-up."""

    name = "huggingface"
    config_type = HFSchedulerConfig

    def create_scheduler(self, optimizer: Optimizer) -> Any:
        """Raises `RecipeError` for a schedule that cannot be made."""
        from transformers import get_scheduler

        name, told = self.config.name, self.config.scheduler_specific_kwargs
        try:
            return get_scheduler(
                name,
                optimizer,
                num_warmup_steps=self.trainer.warmup_steps,
                num_training_steps=max(1, self.trainer.training_horizon),
                scheduler_specific_kwargs=told,
            )
        except (TypeError, ValueError) as error:
            raise RecipeError(f"scheduler: the schedule {name!r} cannot be made: {error}") from error
