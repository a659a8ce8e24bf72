"""The section of a learning rate schedule: the keys that all schedules have."""

from typing import Literal

from pydantic import Field, model_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt


class SchedulerConfig(ComponentConfig):
    """Keys that every schedule has. Lengths are in steps, and with ``interval: epoch`` in epochs."""

    synonyms = {"lr": "learning_rate"}

    warmup_ratio: HumanFloat = Field(default=0.1, ge=0, le=1)
    """Share of the run's steps during which the learning rate rises to its peak."""
    warmup_steps: HumanInt | None = Field(default=None, ge=0)
    """The warm-up in steps, instead of ``warmup_ratio``."""
    warmup_epochs: HumanFloat | None = Field(default=None, ge=0)
    """The warm-up in epochs, instead of ``warmup_ratio``."""

    interval: Literal["step", "epoch"] = "step"
    """Whether the learning rate changes at every step, or where an epoch begins. The lengths of the schedule are in
    this unit, but for the warm-up, which goes by step, as a factor."""
    min_lr: HumanFloat = Field(default=0.0, ge=0)
    """Learning rate that the schedule ends at, or approaches, in place of 0: after the warm-up, what is above it
    follows the schedule."""

    learning_rate: HumanFloat | None = Field(default=None, ge=0)
    """Deprecated: the optimizer's ``learning_rate``, where the optimizer's section does not give it. Also ``lr``."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "SchedulerConfig":
        lengths = {name: getattr(self, name) for name in ("warmup_ratio", "warmup_steps", "warmup_epochs")}
        # a ratio of 0 beside a length has no effect: `dump` writes both
        set_keys = [name for name, value in lengths.items() if value is not None and name in self.model_fields_set]
        set_keys = [name for name in set_keys if name != "warmup_ratio" or self.warmup_ratio]
        if len(set_keys) > 1:
            raise ValueError(f"{' and '.join(set_keys)} both set the warm-up; give one of them")
        if set_keys and set_keys != ["warmup_ratio"]:
            self.warmup_ratio = 0.0
        return self

    def warmup(self, horizon: int, per_epoch: int) -> int:
        """Returns the warm-up steps of a run of ``horizon`` steps, ``per_epoch`` in an epoch."""
        if self.warmup_steps is not None:
            return int(self.warmup_steps)
        if self.warmup_epochs is not None:
            return round(self.warmup_epochs * per_epoch)
        return int(self.warmup_ratio * horizon)
