"""The prime factors of integers."""

import random
from collections.abc import Mapping

from pydantic import Field, model_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.symbolic.generator import ProblemGenerator


class IntegerFactorizationConfig(ComponentConfig):
    """Keys of the generator `integer_factorization`."""

    min: HumanInt = Field(default=2, ge=2)
    """The smallest integer."""
    max: HumanInt = Field(default=9999, ge=2, lt=2**63)
    """The largest integer."""

    @model_validator(mode="after")
    def _check_range(self) -> "IntegerFactorizationConfig":
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is above max: {self.max}")
        return self


class IntegerFactorization(ProblemGenerator[IntegerFactorizationConfig]):
    """Integers, drawn evenly, and their prime factors in ascending order: ``360`` and ``2 * 2 * 2 * 3 * 3 * 5``."""

    name = "integer_factorization"

    def __call__(self, seed: int) -> tuple[str, str]:
        from sympy import factorint

        number = random.Random(seed).randint(self.config.min, self.config.max)
        factors = [prime for prime, power in sorted(factorint(number).items()) for _ in range(power)]
        return str(number), " * ".join(map(str, factors))

    def measures(self, problem: str, answer: str) -> Mapping[str, float]:
        return {"prime_factors": answer.count("*") + 1}
