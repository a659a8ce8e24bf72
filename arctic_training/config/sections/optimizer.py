"""The section of an optimizer: the keys that all optimizers have."""

from typing import Annotated

from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanFloat

Decay = Annotated[HumanFloat, Field(ge=0, lt=1)]
"""The share that a running mean keeps of its value before."""


class OptimizerConfig(ComponentConfig):
    """Keys that every optimizer has."""

    synonyms = {"lr": "learning_rate"}

    learning_rate: HumanFloat = Field(default=5e-4, ge=0)
    """Peak learning rate. Also ``lr``."""
    weight_decay: HumanFloat = Field(default=0.1, ge=0)
    """Weight decay, decoupled where the optimizer decouples it; not applied to biases and norms."""

    @property
    def moments(self) -> int | None:
        """The fp32 numbers that the algorithm keeps for each weight at least; None: not known."""
        return None

    @property
    def is_schedule_free(self) -> bool:
        """True for an algorithm that replaces a falling learning rate, so that a schedule may only warm it up."""
        return False

    def highest_stage(self, dtype: str) -> int:
        """Returns the highest ZeRO stage at which the algorithm is correct for weights of ``dtype``."""
        return 3
