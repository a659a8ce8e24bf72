"""The section of an optimizer, as far as every optimizer has one."""

from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.numbers import HumanFloat


class OptimizerConfig(ComponentConfig):
    """Keys that every optimizer has."""

    synonyms = {"lr": "learning_rate"}

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
