"""The section of an optimizer, as far as every optimizer has one."""

from typing import Any

from pydantic import Field, model_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.numbers import HumanFloat


def long_name(section: Any) -> Any:
    """A section with ``learning_rate`` where it says ``lr``."""
    if not isinstance(section, dict) or "lr" not in section:
        return section
    if "learning_rate" in section:
        raise ValueError("lr and learning_rate are the same; give one of them")
    return {("learning_rate" if key == "lr" else key): value for key, value in section.items()}


class OptimizerConfig(ComponentConfig):
    learning_rate: HumanFloat = Field(default=5e-4, ge=0)
    """Peak learning rate; also written ``lr``."""
    weight_decay: HumanFloat = Field(default=0.1, ge=0)
    """Decoupled where the optimizer has it so; never on biases and norms."""

    @property
    def moments(self) -> int | None:
        """How many numbers of four bytes the algorithm keeps for each weight at least; None: not known."""
        return None

    def highest_stage(self, dtype: str) -> int:
        """The highest ZeRO stage at which the algorithm is what its name says, for weights of ``dtype``."""
        return 3

    @model_validator(mode="before")
    @classmethod
    def _short_name(cls, section: Any) -> Any:
        return long_name(section)
