"""The schedules of transformers, by their names."""

from typing import Any

import torch
from pydantic import field_validator, model_validator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from arctic_training.config.checks.foreign_keys import SCHEDULES
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.types import read_numbers
from arctic_training.errors.types import RecipeError
from arctic_training.registry import suggest
from arctic_training.scheduler.factory import SchedulerFactory

_BY_METRIC = ("reduce_lr_on_plateau", "greedy")
_KNOWN = [*SCHEDULES[:4], "constant", *SCHEDULES[4:]]
"""Listed here, so that a recipe is checked without importing transformers."""
_NEED_KWARGS = ("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay")
_ENDS = {"min_lr", "min_lr_rate", "min_lr_ratio", "lr_end"}
"""Arguments of transformers' schedules that set where they end."""
_WARMUP = {"warmup_ratio", "warmup_steps", "warmup_epochs"}


class HFSchedulerConfig(SchedulerConfig):
    """The scheduler section for a schedule of transformers."""

    name: str = "linear"
    """Any schedule of transformers: linear, cosine, constant_with_warmup, cosine_with_min_lr, ..."""
    scheduler_specific_kwargs: dict[str, Any] = {}
    """Arguments of that schedule beside warm-up and length."""

    @field_validator("scheduler_specific_kwargs")
    @classmethod
    def _read_numbers(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {key: read_numbers(value, float) for key, value in kwargs.items()}

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name in _BY_METRIC:
            mend = "choose another" if name == "greedy" else "use the callback reduce_lr_on_plateau"
            raise ValueError(f"{name} follows a metric and not the steps; {mend}")
        if name not in _KNOWN:
            raise ValueError(f"no schedule is named {name!r}; {suggest(name, _KNOWN)}")
        return name

    @model_validator(mode="after")
    def _check_unused_keys(self) -> "HFSchedulerConfig":
        if self.name.startswith("constant") and (kwargs := self.scheduler_specific_kwargs):
            raise ValueError(f"scheduler_specific_kwargs: {self.name} takes none, and has {', '.join(kwargs)}")
        if self.min_lr and self.name.startswith("constant"):
            raise ValueError("min_lr: a constant learning rate does not fall; remove it")
        if self.min_lr and (other := _ENDS & self.scheduler_specific_kwargs.keys()):
            names = f"min_lr and scheduler_specific_kwargs.{sorted(other)[0]}"
            raise ValueError(f"{names} both set the last learning rate; give one of them")
        if self.name == "constant":
            if any(getattr(self, key) for key in _WARMUP & self.model_fields_set):
                raise ValueError("name: constant has no warm-up; constant_with_warmup has")
            self.warmup_ratio = 0.0  # so that what `dump` writes can be read again
        return self


class HFSchedulerFactory(SchedulerFactory[HFSchedulerConfig]):
    """Makes any schedule of transformers, with warm-up."""

    name = "huggingface"

    @property
    def only_warms_up(self) -> bool:
        return self.config.name in ("constant", "constant_with_warmup")

    def check(self) -> None:
        """Raises `RecipeError` for a warm-up longer than the run, and for a schedule that transformers refuses."""
        super().check()
        if self.config.scheduler_specific_kwargs or self.config.name in _NEED_KWARGS:
            rate = getattr(getattr(self.trainer, "optimizer_section", None), "learning_rate", 1.0)
            self.create_scheduler(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate))

    def create_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Raises `RecipeError` for a schedule that transformers refuses, or that is negative at one of some steps."""
        from transformers import get_scheduler

        name, kwargs = self.config.name, self.config.scheduler_specific_kwargs
        if self.config.min_lr and name in _NEED_KWARGS and "cosine" in name:
            kwargs = {**kwargs, "min_lr_rate": 0.0}  # the base moves the end
        horizon = max(1, self.trainer.training_horizon)
        steps = {*range(0, horizon, -(-horizon // 100)), horizon}
        try:
            schedule: LRScheduler = get_scheduler(
                name,
                optimizer,
                num_warmup_steps=self.trainer.warmup_steps,
                num_training_steps=horizon,
                scheduler_specific_kwargs=kwargs,
            )
            if isinstance(schedule, LambdaLR) and min(map(schedule.lr_lambdas[0], steps)) < 0:
                raise ValueError("its learning rate becomes negative")
        except (TypeError, ValueError, ArithmeticError) as error:
            raise RecipeError(f"scheduler: the schedule {name!r} cannot be made: {error}") from error
        return schedule
