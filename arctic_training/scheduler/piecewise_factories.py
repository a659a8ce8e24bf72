"""Schedules that fall at some steps, and those that rise and fall in cycles, by torch's LambdaLR."""

import bisect
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.scheduler.factory import SchedulerFactory, warmup_factor


class StepConfig(SchedulerConfig):
    """The scheduler section for a decay at regular distances."""

    step_size: HumanInt = Field(ge=1)
    """Steps (or epochs, by ``interval``) of the run from one fall of the learning rate to the next."""
    gamma: HumanFloat = Field(default=0.1, gt=0, le=1)
    """The learning rate is multiplied by this every ``step_size`` steps."""


class StepFactory(SchedulerFactory[StepConfig]):
    """Makes a learning rate that falls every ``step_size`` steps, after a linear warm-up."""

    name = "step"

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup, size, gamma = self.trainer.warmup_steps, self.config.step_size, self.config.gamma
        return LambdaLR(optimizer, lambda step: warmup_factor(step, warmup) * float(gamma ** (step // size)))


class MultiStepConfig(SchedulerConfig):
    """The scheduler section for a decay at some steps."""

    milestones: list[Annotated[HumanInt, Field(ge=1)]] = Field(min_length=1)
    """Steps (or epochs, by ``interval``) of the run at which the learning rate falls; one given twice counts twice."""
    gamma: HumanFloat = Field(default=0.1, gt=0, le=1)
    """The learning rate is multiplied by this at every milestone."""


class MultiStepFactory(SchedulerFactory[MultiStepConfig]):
    """Makes a learning rate that falls at ``milestones``, after a linear warm-up."""

    name = "multistep"

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup, milestones, gamma = self.trainer.warmup_steps, sorted(self.config.milestones), self.config.gamma
        return LambdaLR(
            optimizer, lambda step: warmup_factor(step, warmup) * float(gamma ** bisect.bisect_right(milestones, step))
        )


class CyclicConfig(SchedulerConfig):
    """The scheduler section for cycles between ``min_lr`` and the peak."""

    warmup_ratio: HumanFloat = Field(default=0.0, ge=0, le=1)
    """Not to be given: a cycle begins at ``min_lr``."""
    step_size_up: HumanInt = Field(default=2000, ge=1)
    """Steps (or epochs, by ``interval``) in which the learning rate rises."""
    step_size_down: HumanInt | None = Field(default=None, ge=1)
    """Steps in which it falls again; null: as many."""
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    """Whether all cycles are as high, each is half as high as the last, or the height falls by ``gamma`` every step."""
    gamma: Annotated[HumanFloat, OnlyWith("mode", "exp_range")] = Field(default=1.0, gt=0, le=1)
    """With ``exp_range``: the height is multiplied by this at every step."""

    @model_validator(mode="after")
    def _check_unused_keys(self) -> "CyclicConfig":
        for key in ("warmup_ratio", "warmup_steps", "warmup_epochs"):
            if getattr(self, key):
                raise ValueError(f"{key}: a cycle begins at min_lr and rises by itself; remove it")
        return self


class CyclicFactory(SchedulerFactory[CyclicConfig]):
    """Makes cycles of a linear rise from ``min_lr`` and a fall back to it (Smith 2015, arXiv 1506.01186)."""

    name = "cyclic"

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        config = self.config
        up, down = config.step_size_up, config.step_size_down or config.step_size_up

        def factor(step: int) -> float:
            cycle, position = divmod(step, up + down)
            height = position / up if position <= up else (up + down - position) / down
            scale = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": config.gamma**step}[config.mode]
            return float(height * scale)

        return LambdaLR(optimizer, factor)
