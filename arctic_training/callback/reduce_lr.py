"""Lowers the learning rate, below that of the schedule, when an evaluation or the training loss requires it."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from arctic_training.callback.monitor import Monitor, MonitorConfig
from arctic_training.callback.spikes import SpikeCallback, SpikeConfig
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.engine.engine import TrainedEngine
from arctic_training.errors.types import RecipeError
from arctic_training.logging import logger


class ReductionConfig(ComponentConfig):
    """Options of every callback that lowers the learning rate."""

    role: str = "model"
    """The role whose learning rate is lowered."""
    factor: HumanFloat = Field(default=0.5, gt=0, lt=1)
    """The learning rate is multiplied by this, each time again."""
    min_lr: HumanFloat = Field(default=0.0, ge=0)
    """The learning rate is not lowered below this; where the schedule's own is below, it is the schedule's."""


class Reduction:
    """The factor by which the learning rate of a role is lowered; the schedule goes on as if there were none."""

    def __init__(self, config: ReductionConfig) -> None:
        self.config = config
        self.scale = 1.0

    def check(self, trainer: TrainerView, where: str) -> None:
        """Raises `RecipeError` for a role that is not trained."""
        if self.config.role not in trainer.trained_roles:
            known = ", ".join(trainer.trained_roles)
            raise RecipeError(f"{where}.role: {self.config.role!r} is not trained here; there are: {known}")

    def apply(self, trainer: TrainerView) -> None:
        """Applies to every later step of the role."""
        engine = trainer.trainable_engines[self.config.role]
        assert isinstance(engine, TrainedEngine)
        engine.add_lr_rule(lambda lr: max(lr * self.scale, min(lr, self.config.min_lr)))

    def lower(self, why: str) -> None:
        """Multiplies the factor by ``factor``."""
        self.scale *= self.config.factor
        logger.warning(f"{why}: the learning rate is now {self.scale:.4g} times that of the schedule")


class ReduceLROnPlateauConfig(MonitorConfig, ReductionConfig):
    """Options of the callback `reduce_lr_on_plateau`."""

    patience: int = Field(default=3, ge=1)
    """Evaluations in a row without a better value after which the learning rate is lowered."""
    cooldown: int = Field(default=0, ge=0)
    """Evaluations after that which are not counted."""


class ReduceLROnPlateau(Monitor[ReduceLROnPlateauConfig]):
    """Lowers the learning rate when a metric of the evaluations no longer gets better."""

    name = "reduce_lr_on_plateau"

    def __init__(self, config: ReduceLROnPlateauConfig) -> None:
        super().__init__(config)
        self.reduction = Reduction(config)
        self._cooldown = 0

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for a role that is not trained."""
        self.reduction.check(trainer, f"callbacks.{self.name}")

    def post_init(self, trainer: TrainerView) -> None:
        """Applies what is lowered."""
        self.reduction.apply(trainer)

    def observe(self, trainer: TrainerView, value: float, values: Mapping[str, float]) -> None:
        if self._cooldown:
            self._cooldown -= 1
            self.waited = 0
        if self.waited >= self.config.patience:
            self.reduction.lower(f"{self.metric} has not been better for {self.waited} evaluations")
            self.waited, self._cooldown = 0, self.config.cooldown

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scale": self.reduction.scale, "cooldown": self._cooldown}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        super().load_state_dict(state)
        self.reduction.scale, self._cooldown = float(state["scale"]), int(state["cooldown"])


class ReduceLROnInstabilityConfig(SpikeConfig, ReductionConfig):
    """Options of the callback `reduce_lr_on_instability`."""

    patience: int = Field(default=1, ge=1)
    """Spikes without a pause of ``window`` steps after which the learning rate is lowered."""
    cooldown: HumanInt = Field(default=10, ge=0)
    """Steps after that whose spikes are not counted."""


class ReduceLROnInstability(SpikeCallback[ReduceLROnInstabilityConfig]):
    """Lowers the learning rate when the training loss jumps far above that of the steps before."""

    name = "reduce_lr_on_instability"

    def __init__(self, config: ReduceLROnInstabilityConfig) -> None:
        super().__init__(config)
        self.reduction = Reduction(config)
        self._spikes: list[int] = []
        """Steps of the spikes that count towards ``patience``."""
        self._cooldown = 0

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for a role that is not trained."""
        self.reduction.check(trainer, f"callbacks.{self.name}")

    def post_init(self, trainer: TrainerView) -> None:
        """Applies what is lowered."""
        self.reduction.apply(trainer)

    def pre_after_update(self, trainer: TrainerView) -> None:
        """Compares the loss of the step with those before."""
        text, step = self.find_spike(self.step_loss()), trainer.progress.step
        if self._cooldown:
            self._cooldown -= 1
            return
        if not text:
            return
        self._spikes = [*(one for one in self._spikes if step - one <= self.config.window), step]
        if len(self._spikes) >= self.config.patience:
            self.reduction.lower(f"step {step}: {text}")
            self._spikes, self._cooldown = [], self.config.cooldown

    def state_dict(self) -> dict[str, Any]:
        state = {"scale": self.reduction.scale, "cooldown": self._cooldown, "spikes": self._spikes}
        return {**super().state_dict(), **state}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        super().load_state_dict(state)
        self.reduction.scale, self._cooldown = float(state["scale"]), int(state["cooldown"])
        self._spikes = [int(step) for step in state["spikes"]]
