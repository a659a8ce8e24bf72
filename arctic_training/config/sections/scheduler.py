"""The section of a learning rate schedule, as far as every schedule has one."""

from pydantic import Field, model_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.numbers import HumanFloat, HumanInt


class SchedulerConfig(ComponentConfig):
    """All lengths are in optimizer updates."""

    synonyms = {"lr": "learning_rate"}

    warmup_ratio: HumanFloat = Field(default=0.1, ge=0, le=1)
    """Share of the run's updates during which the learning rate rises to its peak."""
    warmup_steps: HumanInt | None = Field(default=None, ge=0)
    """The same in updates; takes the place of ``warmup_ratio``."""
    warmup_epochs: HumanFloat | None = Field(default=None, ge=0)
    """The same in epochs; takes the place of ``warmup_ratio``."""

    learning_rate: HumanFloat | None = Field(default=None, ge=0)
    """Deprecated: says the optimizer's, where the recipe does not say that in the optimizer's section. Also ``lr``."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "SchedulerConfig":
        lengths = {name: getattr(self, name) for name in ("warmup_ratio", "warmup_steps", "warmup_epochs")}
        # a share of 0 says nothing beside a length: so is it written where the whole recipe is
        given = [name for name, value in lengths.items() if value is not None and name in self.model_fields_set]
        given = [name for name in given if name != "warmup_ratio" or self.warmup_ratio]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say the same thing; give one of them")
        if given and given != ["warmup_ratio"]:
            self.warmup_ratio = 0.0
        return self

    def warmup(self, horizon: int, per_epoch: int) -> int:
        """Optimizer updates of warm-up in a run of ``horizon`` updates, ``per_epoch`` in an epoch."""
        if self.warmup_steps is not None:
            return int(self.warmup_steps)
        if self.warmup_epochs is not None:
            return round(self.warmup_epochs * per_epoch)
        return int(self.warmup_ratio * horizon)
