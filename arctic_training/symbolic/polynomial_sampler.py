"""Random polynomials."""

import random
from collections.abc import Iterator
from math import comb
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.symbolic.polynomials import FieldName, Order, polynomial_ring, variable_names

if TYPE_CHECKING:
    from sympy.polys.rings import PolyElement, PolyRing

_MAX_MONOMIALS = 100_000
_DECIMALS = 2

Monomial = tuple[int, ...]
"""The exponent of each variable."""


class PolynomialConfig(ComponentConfig):
    """Keys of generators that draw polynomials."""

    field: FieldName = "GF(7)"
    """What coefficients are: integers ``ZZ``, fractions ``QQ``, decimal numbers ``RR``, or residues ``GF(p)``."""
    variables: int = Field(default=2, ge=1, le=100)
    """Variables, named ``x0``, ``x1``, ..., the largest first."""
    order: Order = "grevlex"
    """The monomial order: of the terms in a text, and of what is a leading term."""
    min_degree: int = Field(default=0, ge=0)
    """The smallest total degree of a polynomial."""
    max_degree: int = Field(default=3, ge=0, le=1000)
    """The largest total degree of a polynomial."""
    min_terms: int = Field(default=1, ge=1)
    """The fewest terms of a polynomial."""
    max_terms: int = Field(default=3, ge=1)
    """The most terms of a polynomial."""
    max_coefficient: HumanInt = Field(default=10, ge=1)
    """The largest absolute value of a coefficient, and of a denominator in ``QQ``. In ``RR`` coefficients have two
    decimals. ``GF(p)`` has all residues but 0."""
    form: Literal["formula", "expanded"] = "formula"
    """How polynomials are written: ``3*x0^2*x1 + 5``, or with all exponents of each term, ``C3 E2 E1 + C5 E0 E0``."""

    @model_validator(mode="after")
    def _check_ranges(self) -> "PolynomialConfig":
        if self.min_degree > self.max_degree:
            raise ValueError(f"min_degree: {self.min_degree} is above max_degree: {self.max_degree}")
        if self.min_terms > self.max_terms:
            raise ValueError(f"min_terms: {self.min_terms} is above max_terms: {self.max_terms}")
        count = comb(self.variables + self.max_degree, self.variables)
        if count > _MAX_MONOMIALS:
            raise ValueError(
                f"max_degree: {count:,} monomials have a degree up to {self.max_degree}; at most {_MAX_MONOMIALS:,} "
                "can be drawn from"
            )
        if self.max_terms > count:
            raise ValueError(f"max_terms: {self.max_terms} terms, and only {count} monomials have such a degree")
        return self


class PolynomialSampler:
    """Draws polynomials.

    The number of terms is drawn evenly, then as many different monomials: one evenly from those of at least the
    smallest degree, the others evenly from all; then a coefficient other than 0 for each, evenly.
    """

    def __init__(
        self, config: PolynomialConfig, *, min_degree: int | None = None, max_degree: int | None = None
    ) -> None:
        """``min_degree`` and ``max_degree`` take the place of those of ``config``, if they are given."""
        self.config = config
        least = config.min_degree if min_degree is None else min_degree
        most = config.max_degree if max_degree is None else max_degree
        self.monomials = list(_monomials(config.variables, most))
        self.high = [one for one in self.monomials if sum(one) >= least]
        """The monomials of at least the smallest degree."""
        self.max_terms = min(config.max_terms, len(self.monomials))
        self.min_terms = min(config.min_terms, self.max_terms)
        self.ring: PolyRing = polynomial_ring(config.field, variable_names(config.variables), config.order)

    def __call__(self, draw: random.Random) -> "PolyElement":
        """Returns a polynomial that ``draw`` determines."""
        count = draw.randint(self.min_terms, self.max_terms)
        first = draw.choice(self.high)
        others = [one for one in draw.sample(self.monomials, count) if one != first]
        return self.ring.from_dict({one: self._coefficient(draw) for one in [first, *others[: count - 1]]})

    def _coefficient(self, draw: random.Random) -> object:
        numbers, largest = self.ring.domain, self.config.max_coefficient
        if numbers.is_FiniteField:
            return numbers(draw.randrange(1, numbers.characteristic()))
        if numbers.is_RealField:
            return numbers(draw.choice((-1, 1)) * draw.randint(1, largest * 10**_DECIMALS) / 10**_DECIMALS)
        integer = draw.choice((-1, 1)) * draw.randint(1, largest)
        return numbers(integer) if numbers.is_ZZ else numbers(integer, draw.randint(1, largest))


def _monomials(variables: int, degree: int) -> Iterator[Monomial]:
    """Yields all monomials of total degree up to ``degree``."""
    if not variables:
        yield ()
        return
    for power in range(degree + 1):
        for rest in _monomials(variables - 1, degree - power):
            yield (power, *rest)


def degree(polynomial: "PolyElement") -> int:
    """Returns the total degree of a polynomial; 0 for 0."""
    return max((sum(map(int, powers)) for powers in polynomial), default=0)
