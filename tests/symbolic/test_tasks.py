"""The tasks: their answers are right, by other means than they were made."""

import random
from collections import Counter
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from arctic_training.config.sections.component import parse_component
from arctic_training.symbolic.generator import create_generator, instance_seed
from arctic_training.symbolic.polynomial_sampler import PolynomialConfig, PolynomialSampler, degree
from arctic_training.symbolic.polynomials import polynomial_ring, read_polynomial, write_expanded, write_formula

Terms = dict[tuple[int, ...], Fraction]


def instances(task: str, count: int = 200, **keys: Any) -> list[tuple[str, str]]:
    generator = create_generator(parse_component("generator", {"type": task, **keys}))
    return [generator(instance_seed(0, "train", number)) for number in range(count)]


def test_sums_are_those_of_numpy() -> None:
    for problem, answer in instances("cumulative_sums", modulus=13, length=6):
        numbers = np.array(problem.split(), int)
        assert len(numbers) == 6 and numbers.max() < 13
        assert answer == " ".join(map(str, np.cumsum(numbers) % 13))


def test_factors_are_primes_with_the_right_product() -> None:
    for problem, answer in instances("integer_factorization", min=2, max=5000):
        factors = [int(word) for word in answer.split(" * ")]
        assert factors == sorted(factors) and np.prod(factors) == int(problem) <= 5000
        assert all(p > 1 and all(p % n for n in range(2, p)) for p in factors)


def evaluate(formula: str, x: int, y: int) -> int:
    """The value of a formula, by Python itself."""
    return int(eval(formula.replace("^", "**"), {"x0": x, "x1": y}))


def test_a_sum_of_polynomials_has_the_sum_of_their_values_everywhere() -> None:
    for problem, answer in instances("polynomial_addition", 60, summands=3):
        parts = problem.split(" | ")
        assert len(parts) == 3
        for x, y in product(range(7), repeat=2):
            assert sum(evaluate(one, x, y) for one in parts) % 7 == evaluate(answer, x, y) % 7


def terms(formula: str) -> Terms:
    """The terms of a formula in two variables, read term by term."""
    total: Terms = {}
    for term in formula.replace(" ", "").replace("-", "+-").split("+"):
        if not term:
            continue
        coefficient, powers = Fraction(-1 if term.startswith("-") else 1), [0, 0]
        for factor in term.removeprefix("-").split("*"):
            name, _, power = factor.partition("^")
            if name.startswith("x"):
                powers[int(name[1:])] += int(power or 1)
            else:
                coefficient *= Fraction(name)
        total[tuple(powers)] = total.get(tuple(powers), Fraction(0)) + coefficient
    return {powers: value for powers, value in total.items() if value}


ORDERS = {
    "lex": lambda powers: powers,
    "grlex": lambda powers: (sum(powers), powers),
    "grevlex": lambda powers: (sum(powers), [-power for power in reversed(powers)]),
}
"""Keys by which monomials are compared: Cox, Little and O'Shea, 2.2, definitions 3, 5 and 6."""


def divide(dividend: Terms, divisors: list[Terms], order: Any, modulus: int | None) -> Terms:
    """The remainder by the algorithm of Cox, Little and O'Shea, 2.3, theorem 3, with fractions or residues."""

    def reduced(value: Fraction) -> Fraction:
        return value if modulus is None else Fraction(value.numerator * pow(value.denominator, -1, modulus) % modulus)

    rest, remainder = dict(dividend), Terms()
    while rest:
        lead = max(rest, key=order)
        for divisor in divisors:
            top = max(divisor, key=order)
            quotient = tuple(a - b for a, b in zip(lead, top, strict=True))
            if min(quotient) >= 0:
                factor = reduced(rest[lead] / divisor[top])
                for powers, value in divisor.items():
                    at = tuple(a + b for a, b in zip(powers, quotient, strict=True))
                    rest[at] = reduced(rest.get(at, Fraction(0)) - factor * value)
                rest = {powers: value for powers, value in rest.items() if value}
                break
        else:
            remainder[lead] = rest.pop(lead)
    return remainder


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("field", "modulus"), [("GF(7)", 7), ("QQ", None)])
def test_a_remainder_is_that_of_the_division_algorithm(field: str, modulus: int | None, order: str) -> None:
    keys = {"field": field, "order": order, "max_degree": 4, "max_terms": 5, "divisor_degree": 2}
    nonzero = 0
    for problem, answer in instances("polynomial_reduction", 60, **keys):
        dividend, *divisors = (terms(one) for one in problem.split(" | "))
        assert len(divisors) == 2 and all(any(map(sum, one)) for one in divisors), "one divides by a constant"
        assert terms(answer) == divide(dividend, divisors, ORDERS[order], modulus)
        nonzero += answer != "0"
    assert nonzero > 10


@pytest.mark.parametrize("order", ORDERS)
def test_terms_are_written_the_largest_monomial_first(order: str) -> None:
    for problem, _ in instances("polynomial_addition", 50, order=order, max_degree=4, max_terms=8):
        monomials = list(terms(problem.split(" | ")[0]))
        assert monomials == sorted(monomials, key=ORDERS[order], reverse=True)


@pytest.mark.parametrize("field", ["GF(5)", "ZZ", "QQ", "RR"])
def test_polynomials_have_the_degree_terms_and_coefficients_of_the_recipe(field: str) -> None:
    keys = {"field": field, "min_degree": 2, "max_degree": 4, "min_terms": 2, "max_terms": 4, "max_coefficient": 6}
    sampler = PolynomialSampler(PolynomialConfig.model_validate(keys))
    polynomials = [sampler(random.Random(seed)) for seed in range(300)]
    assert {degree(one) for one in polynomials} == {2, 3, 4}
    assert {len(one) for one in polynomials} == {2, 3, 4}
    values = [value for one in polynomials for value in one.values()]
    assert all(values)
    if field == "GF(5)":
        assert {int(value) for value in values} == {1, 2, 3, 4}
    elif field == "QQ":
        assert {int(value.denominator) for value in values} <= set(range(1, 7)) and min(values) < 0 < max(values)
    else:
        assert max(map(abs, values)) <= 6 and min(values) < 0 < max(values)
    for one in polynomials[:60]:
        for write in (write_formula, write_expanded):
            other = read_polynomial(write(one), one.ring)
            assert other == one or (field == "RR" and max(map(abs, (other - one).values()), default=0) < 1e-9)


def test_all_monomials_are_drawn_evenly() -> None:
    sampler = PolynomialSampler(PolynomialConfig.model_validate({"max_degree": 2, "max_terms": 1}))
    counts = Counter(next(iter(sampler(random.Random(seed)))) for seed in range(3000))
    assert len(counts) == 6 and all(abs(one - 500) < 5 * 500**0.5 for one in counts.values())


def test_how_polynomials_are_written() -> None:
    ring = polynomial_ring("ZZ", ("x0", "x1"))
    x, y = ring.gens
    for polynomial, formula, expanded in (
        (3 * x**2 * y - y + 5, "3*x0^2*x1 - x1 + 5", "C3 E2 E1 + C-1 E0 E1 + C5 E0 E0"),
        (-x, "-x0", "C-1 E1 E0"),
        (ring.zero, "0", "C0 E0 E0"),
        (-ring.one, "-1", "C-1 E0 E0"),
    ):
        assert (write_formula(polynomial), write_expanded(polynomial)) == (formula, expanded)
    half = polynomial_ring("QQ", ("x0",)).gens[0] / 2
    assert write_formula(half) == "1/2*x0" and write_expanded(half) == "C1/2 E1"


@pytest.mark.parametrize(
    ("task", "keys", "message"),
    [
        ("cumulative_sums", {"modulus": 1}, "modulus: 1 should be greater than or equal to 2"),
        ("integer_factorization", {"min": 9, "max": 8}, "min: 9 is above max: 8"),
        ("polynomial_addition", {"field": "GF(8)"}, "field: 'GF(8)': expected ZZ, QQ, RR, or GF(p) with a prime p"),
        ("polynomial_addition", {"field": "CC"}, "field: 'CC': expected ZZ, QQ, RR, or GF(p) with a prime p"),
        ("polynomial_addition", {"min_degree": 4}, "min_degree: 4 is above max_degree: 3"),
        ("polynomial_addition", {"min_terms": 4}, "min_terms: 4 is above max_terms: 3"),
        ("polynomial_addition", {"max_terms": 11}, "max_terms: 11 terms, and only 10 monomials have such a degree"),
        ("polynomial_addition", {"variables": 50, "max_degree": 50}, "max_degree: 100,891,344,545,564,"),
        ("polynomial_reduction", {"field": "ZZ"}, "field: a division over ZZ is not exact; give QQ or GF(p)"),
        ("polynomial_reduction", {"divisor_degree": 4}, "divisor_degree: 4 is above max_degree: 3"),
    ],
)
def test_what_no_problem_can_be_drawn_from_is_refused(task: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_component("generator", {"type": task, **keys})
    assert message in str(caught.value)


def test_both_forms_are_of_the_same_polynomials() -> None:
    formulas, expanded = (instances("polynomial_addition", 50, form=form) for form in ("formula", "expanded"))
    ring = polynomial_ring("GF(7)", ("x0", "x1"))
    for (problem, answer), (other_problem, other_answer) in zip(formulas, expanded, strict=True):
        texts = [*problem.split(" | "), answer], [*other_problem.split(" | "), other_answer]
        assert [read_polynomial(one, ring) for one in texts[0]] == [read_polynomial(one, ring) for one in texts[1]]
        assert other_answer == write_expanded(read_polynomial(answer, ring))
