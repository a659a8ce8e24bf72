"""Tasks about polynomials: their sum, and what is left of one by division by others."""

import random
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field, model_validator

from arctic_training.symbolic.generator import ProblemGenerator
from arctic_training.symbolic.polynomial_sampler import PolynomialConfig, PolynomialSampler, degree
from arctic_training.symbolic.polynomials import read_polynomial, split_list, write_expanded, write_formula

if TYPE_CHECKING:
    from sympy.polys.rings import PolyElement

SEPARATOR = " | "
"""Separator of the polynomials of a problem."""
P = TypeVar("P", bound=PolynomialConfig, covariant=True)


class PolynomialTask(ProblemGenerator[P]):
    """Base of the tasks whose problems are polynomials and whose answer is one; a subclass defines `draw`."""

    def __init__(self, config: P) -> None:
        super().__init__(config)
        self.sampler = PolynomialSampler(config)

    def __call__(self, seed: int) -> tuple[str, str]:
        polynomials, answer = self.draw(random.Random(seed))
        write = write_expanded if self.config.form == "expanded" else write_formula
        return SEPARATOR.join(map(write, polynomials)), write(answer)

    @abstractmethod
    def draw(self, draw: random.Random) -> tuple[list["PolyElement"], "PolyElement"]:
        """Returns the polynomials of a problem, and the answer."""

    def measures(self, problem: str, answer: str) -> Mapping[str, float]:
        polynomials = [read_polynomial(one, self.sampler.ring) for one in split_list(problem, SEPARATOR)]
        result = read_polynomial(answer, self.sampler.ring)
        return {
            "problem_degree": max(map(degree, polynomials)),
            "problem_terms": sum(map(len, polynomials)),
            "answer_degree": degree(result),
            "answer_terms": len(result),
        }


class PolynomialAdditionConfig(PolynomialConfig):
    """Keys of the generator `polynomial_addition`."""

    summands: int = Field(default=2, ge=2)
    """Polynomials of a problem."""


class PolynomialAddition(PolynomialTask[PolynomialAdditionConfig]):
    """Polynomials and their sum: ``3*x0 + 1 | 4*x0`` and ``1`` over GF(7)."""

    name = "polynomial_addition"

    def draw(self, draw: random.Random) -> tuple[list["PolyElement"], "PolyElement"]:
        polynomials = [self.sampler(draw) for _ in range(self.config.summands)]
        return polynomials, sum(polynomials, self.sampler.ring.zero)


class PolynomialReductionConfig(PolynomialConfig):
    """Keys of the generator `polynomial_reduction`."""

    divisors: int = Field(default=2, ge=1)
    """Polynomials that are divided by, in the order of the problem."""
    divisor_degree: int = Field(default=1, ge=1)
    """The largest total degree of a divisor; the smallest is 1."""

    @model_validator(mode="after")
    def _check_division(self) -> "PolynomialReductionConfig":
        if self.field in ("ZZ", "RR"):
            raise ValueError(f"field: a division over {self.field} is not exact; give QQ or GF(p)")
        if self.divisor_degree > self.max_degree:
            raise ValueError(f"divisor_degree: {self.divisor_degree} is above max_degree: {self.max_degree}")
        return self


class PolynomialReduction(PolynomialTask[PolynomialReductionConfig]):
    """A polynomial, those that it is divided by, and the remainder: ``x0^2 + x1 | x0 + 1`` and ``x1 + 1``.

    It is the normal form of the division algorithm (Cox, Little and O'Shea, Ideals, Varieties, and Algorithms, 2.3,
    theorem 3): no term of it is divisible by the leading term of a divisor. The first divisor that divides a leading
    term is used, so that the remainder depends on their order unless they are a Groebner basis.
    """

    name = "polynomial_reduction"

    def __init__(self, config: PolynomialReductionConfig) -> None:
        super().__init__(config)
        self.divisor_sampler = PolynomialSampler(config, min_degree=1, max_degree=config.divisor_degree)

    def draw(self, draw: random.Random) -> tuple[list["PolyElement"], "PolyElement"]:
        dividend = self.sampler(draw)
        divisors = [self.divisor_sampler(draw) for _ in range(self.config.divisors)]
        return [dividend, *divisors], dividend.rem(divisors)
