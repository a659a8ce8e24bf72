"""Schedules that are a closed form of the update, on torch's LambdaLR."""

import math
from typing import Any

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arctic_training.config.sections.numbers import HumanFloat, HumanInt
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.errors.types import RecipeError
from arctic_training.scheduler.factory import SchedulerFactory


def warmed_up(update: int, warmup: int) -> float:
    """The share of the peak during warm-up: 0 before the first update, 1 from update ``warmup`` on."""
    return min(1.0, update / warmup) if warmup else 1.0


class WSDConfig(SchedulerConfig):
    num_warmup_steps: HumanInt | None = Field(default=None, ge=0)
    """ArcticTraining's name for ``warmup_steps``."""
    num_decay_steps: HumanInt | None = Field(default=None, ge=0)
    """Updates of the decay at the end; a tenth of the run when left out."""
    min_lr_ratio: HumanFloat = Field(default=0.0, ge=0, le=1)
    """Share of the peak that the decay ends at."""

    def model_post_init(self, _: Any) -> None:
        if self.num_warmup_steps is not None:
            if self.warmup_steps not in (None, self.num_warmup_steps):
                raise ValueError("num_warmup_steps and warmup_steps are the same; give one of them")
            self.warmup_steps = self.num_warmup_steps


class WSDFactory(SchedulerFactory[WSDConfig]):
    """Warm-up, a constant stretch, then a straight way down (arXiv:2404.06395)."""

    name = "wsd"
    aliases = ("wds",)
    config_type = WSDConfig

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup, horizon, least = self.trainer.warmup_steps, self.trainer.training_horizon, self.config.min_lr_ratio
        told = self.config.num_decay_steps
        decay = max(1, horizon // 10) if told is None else told
        if 0 < horizon < warmup + decay:
            raise RecipeError(
                f"scheduler: {warmup} updates of warm-up and {decay} of decay are more than the run's {horizon}"
            )

        def share(update: int) -> float:
            left = max(0, horizon - update) / decay if decay else 1.0
            return min(warmed_up(update, warmup), max(least, least + (1 - least) * min(1.0, left)))

        return LambdaLR(optimizer, share)


class ExponentialConfig(SchedulerConfig):
    gamma: HumanFloat = Field(default=0.999, gt=0, le=1)
    """The learning rate is multiplied by this at every update after warm-up."""


class ExponentialFactory(SchedulerFactory[ExponentialConfig]):
    """Warm-up, then ``gamma`` to the power of the updates since."""

    name = "exponential"
    config_type = ExponentialConfig

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup, gamma = self.trainer.warmup_steps, self.config.gamma

        def share(update: int) -> float:
            return float(warmed_up(update, warmup) * gamma ** max(0, update - warmup))

        return LambdaLR(optimizer, share)


class ConstantFactory(SchedulerFactory[SchedulerConfig]):
    """Warm-up, then the peak to the end."""

    name = "constant"

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup = self.trainer.warmup_steps
        return LambdaLR(optimizer, lambda update: warmed_up(update, warmup))


class OneCycleConfig(SchedulerConfig):
    warmup_ratio: HumanFloat = Field(default=0.3, ge=0, le=1)
    div_factor: HumanFloat = Field(default=25.0, ge=1)
    """The first learning rate is the peak divided by this."""
    final_div_factor: HumanFloat = Field(default=1e4, ge=1)
    """The last one is the first divided by this."""


class OneCycleFactory(SchedulerFactory[OneCycleConfig]):
    """Up and down again along cosines (Smith and Topin 2017, arXiv:1708.07120)."""

    name = "one_cycle"
    config_type = OneCycleConfig

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup, horizon = self.trainer.warmup_steps, max(1, self.trainer.training_horizon)
        first = 1 / self.config.div_factor
        last = first / self.config.final_div_factor

        def share(update: int) -> float:
            rising = update < warmup
            begin, end = (first, 1.0) if rising else (1.0, last)
            way = update / warmup if rising else min(1.0, (update - warmup) / max(1, horizon - warmup))
            return end + (begin - end) * (1 + math.cos(math.pi * way)) / 2

        return LambdaLR(optimizer, share)
