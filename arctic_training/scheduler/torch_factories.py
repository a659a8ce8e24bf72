"""Schedules in closed form, by torch's LambdaLR."""

import math

from pydantic import Field, model_validator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.errors.types import RecipeError
from arctic_training.scheduler.factory import SchedulerFactory, warmup_factor


class WSDConfig(SchedulerConfig):
    """The scheduler section for warm-up, stable, decay."""

    num_warmup_steps: HumanInt | None = Field(default=None, ge=0)
    """ArcticTraining's name for ``warmup_steps``."""
    num_decay_steps: HumanInt | None = Field(default=None, ge=0)
    """Steps (or epochs, by ``interval``) of the decay at the end; null: a tenth of the run."""
    min_lr_ratio: HumanFloat = Field(default=0.0, ge=0, le=1)
    """Share of the peak that the decay ends at."""

    def model_post_init(self, _: object) -> None:
        """Raises ValueError when both keys of the warm-up, or of the last learning rate, are set."""
        if self.min_lr and self.min_lr_ratio:
            raise ValueError("min_lr and min_lr_ratio both set the last learning rate; give one of them")
        if self.num_warmup_steps is not None:
            if self.warmup_steps not in (None, self.num_warmup_steps):
                raise ValueError("num_warmup_steps and warmup_steps are the same; give one of them")
            self.warmup_steps = self.num_warmup_steps


class WSDFactory(SchedulerFactory[WSDConfig]):
    """Makes warm-up, stable, decay: a linear warm-up, a constant phase and a linear decay (arXiv 2404.06395)."""

    name = "wsd"
    aliases = ("wds",)

    def check(self) -> None:
        """Raises `RecipeError` when warm-up and decay are longer than the run."""
        super().check()
        timed, unit = self.timed(), self.config.interval
        warmup, horizon = timed.trainer.warmup_steps, timed.trainer.training_horizon
        if 0 < horizon < warmup + (decay := timed._decay_steps()):
            raise RecipeError(
                f"scheduler: {warmup} {unit}s of warm-up and {decay} of decay are more than the run's {horizon}"
            )

    def _decay_steps(self) -> int:
        steps = self.config.num_decay_steps
        return max(1, self.trainer.training_horizon // 10) if steps is None else steps

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup, horizon, minimum = self.trainer.warmup_steps, self.trainer.training_horizon, self.config.min_lr_ratio
        decay = self._decay_steps()

        def factor(step: int) -> float:
            left = max(0, horizon - step) / decay if decay else 1.0
            return min(warmup_factor(step, warmup), max(minimum, minimum + (1 - minimum) * min(1.0, left)))

        return LambdaLR(optimizer, factor)


class ExponentialConfig(SchedulerConfig):
    """The scheduler section for exponential decay."""

    gamma: HumanFloat = Field(default=0.999, gt=0, le=1)
    """The learning rate is multiplied by this at every step after warm-up (or every epoch, by ``interval``)."""


class ExponentialFactory(SchedulerFactory[ExponentialConfig]):
    """Makes a linear warm-up, then ``gamma`` to the power of the steps since."""

    name = "exponential"

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup, gamma = self.trainer.warmup_steps, self.config.gamma
        return LambdaLR(optimizer, lambda step: float(warmup_factor(step, warmup) * gamma ** max(0, step - warmup)))


class ConstantConfig(SchedulerConfig):
    """The scheduler section for a constant learning rate."""

    @model_validator(mode="after")
    def _check_min_lr(self) -> "ConstantConfig":
        if self.min_lr:
            raise ValueError("min_lr: a constant learning rate does not fall; remove it")
        return self


class ConstantFactory(SchedulerFactory[ConstantConfig]):
    """Makes a linear warm-up, then the peak to the end."""

    name = "constant"

    @property
    def only_warms_up(self) -> bool:
        return True

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup = self.trainer.warmup_steps
        return LambdaLR(optimizer, lambda step: warmup_factor(step, warmup))


class OneCycleConfig(SchedulerConfig):
    """The scheduler section for one cycle."""

    warmup_ratio: HumanFloat = Field(default=0.3, ge=0, le=1)
    div_factor: HumanFloat = Field(default=25.0, ge=1)
    """The first learning rate is the peak divided by this."""
    final_div_factor: HumanFloat = Field(default=1e4, ge=1)
    """The last one is the first divided by this."""

    @model_validator(mode="after")
    def _one_end(self) -> "OneCycleConfig":
        if self.interval == "epoch":
            raise ValueError("interval: the cycle goes by step; remove it")
        if self.min_lr and self.final_div_factor != type(self).model_fields["final_div_factor"].default:
            raise ValueError("min_lr and final_div_factor both set the last learning rate; give one of them")
        return self


class OneCycleFactory(SchedulerFactory[OneCycleConfig]):
    """Makes one cycle: up and down along cosines (Smith and Topin 2017, arXiv 1708.07120)."""

    name = "one_cycle"

    def create_scheduler(self, optimizer: Optimizer) -> LambdaLR:
        warmup, horizon = self.trainer.warmup_steps, max(1, self.trainer.training_horizon)
        first = 1 / self.config.div_factor
        last = first / self.config.final_div_factor

        def factor(step: int) -> float:
            rising = step < warmup
            begin, end = (first, 1.0) if rising else (1.0, last)
            progress = step / warmup if rising else min(1.0, (step - warmup) / max(1, horizon - warmup))
            return end + (begin - end) * (1 + math.cos(math.pi * progress)) / 2

        return LambdaLR(optimizer, factor)
