"""Running sums of residues."""

import random
from itertools import accumulate

from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.symbolic.generator import ProblemGenerator


class CumulativeSumsConfig(ComponentConfig):
    """Keys of the generator `cumulative_sums`."""

    modulus: HumanInt = Field(default=17, ge=2)
    """The number modulo which sums are taken; the numbers of a problem are below it."""
    length: HumanInt = Field(default=4, ge=1)
    """Numbers of a problem."""


class CumulativeSums(ProblemGenerator[CumulativeSumsConfig]):
    """Numbers and their running sums modulo ``modulus``: ``3 5 16 2`` and ``3 8 7 9``."""

    name = "cumulative_sums"

    def __call__(self, seed: int) -> tuple[str, str]:
        draw, modulus = random.Random(seed), self.config.modulus
        numbers = [draw.randrange(modulus) for _ in range(self.config.length)]
        return " ".join(map(str, numbers)), " ".join(str(total % modulus) for total in accumulate(numbers))
