"""What the scorers call right."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arctic_training.config.sections.component import parse_component
from arctic_training.evaluation.numbers import parse_numbers, parse_values
from arctic_training.evaluation.scorer import Scorer


def score(name: str, generated: str, reference: str, **options: Any) -> float | None:
    config = parse_component("scorer", {"type": name, **options})
    return Scorer.registered(name)(config)(generated, reference)


@pytest.mark.parametrize(
    ("name", "generated", "reference", "options", "expected"),
    [
        ("exact_match", " a, b\n", "a, b", {}, 1),
        ("exact_match", "a, b.", "a, b", {}, 0),
        ("exact_match", "A", "a", {}, 0),
        ("exact_match", "A", "a", {"ignore_case": True}, 1),
        ("exact_match", "1 2\n3", "1 2 3", {}, 0),
        ("exact_match", "1 2\n3", "1 2 3", {"ignore_spaces": True}, 1),
        ("contains", "It is the Son.", "son", {}, 1),
        ("contains", "It is the son-in-law", "son", {}, 1),
        ("contains", "It is a person.", "son", {}, 0),
        ("contains", "It is the Son.", "son", {"ignore_case": False}, 0),
        ("contains", "f(x) = a.b", "a.b", {}, 1),
        ("contains", "f(x) = aXb", "a.b", {}, 0),
        ("contains", "it is -5", "5", {}, 0),
        ("contains", "it is 3.5 or 1,500", "5", {}, 0),
        ("contains", "it is 1,500.", "500", {}, 0),
        ("contains", "it is 5, -5 or item-5", "5", {}, 1),
        ("contains", "so x = -5.", "-5", {}, 1),
        ("contains", "anything", " ", {}, None),
        ("numeric", "3 + 4 = 7.0.", "7", {}, 1),
        ("numeric", "1,024", "1024", {}, 1),
        ("numeric", "7, not 8", "7", {}, 0),
        ("numeric", "1/2", "3/2", {}, 0),
        ("numeric", "so it is 0.5", "1/2", {}, 1),
        ("numeric", r"$-\dfrac{1}{2}$", r"\frac{1}{2}", {}, 0),
        ("numeric", r"\boxed{-\frac12}", "-0.5", {}, 1),
        ("numeric", "\u22125", "5", {}, 0),
        ("numeric", "\u22125", "-5", {}, 1),
        ("numeric", "-$5", "5", {}, 0),
        ("numeric", "x = - 5", "5", {}, 0),
        ("numeric", r"1\,000", "2000", {}, 0),
        ("numeric", "1{,}000", "1\u202f000", {}, 1),
        ("numeric", "10^3", "3", {}, 0),
        ("numeric", r"\sqrt{2}", "2", {}, 0),
        ("numeric", "it took 1:05", "5", {}, 0),
        ("numeric", "9", "2^{10}", {}, None),
        ("numeric", "9", "12:09", {}, None),
        ("numeric", "09", "2026-03-09", {}, None),
        ("numeric", "000", "2 000", {}, None),
        ("numeric", "5,34", "12,34", {}, None),
        ("numeric", "9", "none", {}, None),
        ("numeric", "**9**", r"so \text{it is }$\boxed{9}$!", {}, 1),
        ("numeric", "7, not 8", "7", {"which": "first"}, 1),
        ("numeric", "seven", "7", {}, 0),
        ("numeric", "3.14", "3.14159", {}, 0),
        ("numeric", "3.14", "3.14159", {"tolerance": 0.01}, 1),
        ("regex", "I think (B), or (C)", "(C)", {"pattern": r"\(([A-D])\)"}, 1),
        ("regex", "I think (B), or (C)", "B", {"pattern": r"\(([A-D])\)", "which": "first"}, 1),
        ("regex", "I think B", "B", {"pattern": r"\(([A-D])\)"}, 0),
        ("regex", "yes", "yes", {"pattern": "yes|no"}, 1),
    ],
)
def test_table(name: str, generated: str, reference: str, options: dict[str, Any], expected: float | None) -> None:
    assert score(name, generated, reference, **options) == expected


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_number_is_found_however_it_is_written(value: float) -> None:
    assert parse_numbers(repr(value)) == parse_values(repr(value)) == [value]
    assert parse_numbers(f"so it is {value!r}, I think") == [value]


@given(
    st.fractions(), st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac {{ {} }}{{ {} }}", "{} / {}", "{:,}/{:,}"])
)
@example(Fraction(1, 32088147345014795), "{}/{}")  # a float has not all digits of this divisor
def test_a_fraction_is_one_value(value: Fraction, notation: str) -> None:
    text = notation.format(value.numerator, value.denominator)
    for around in ("{}", "it is {}.", "${}$", r"\boxed{{{}}}", "x = {}, I think"):
        assert parse_values(around.format(text)) == [value.numerator / value.denominator]


@given(st.integers())
def test_thousands_may_be_parted(value: int) -> None:
    for between in (",", "{,}", r"\,", r",\!", "\u202f"):
        assert parse_values(f"{value:,}".replace(",", between)) == [float(value)]
    assert parse_numbers(f"{value:,}") == [float(value)]


@given(st.text())
def test_every_text_matches_itself(text: str) -> None:
    assert score("exact_match", text, text) == 1


def test_no_sign_inside_a_word() -> None:
    assert parse_numbers("route 3-2, x-1, -4") == [3, 2, 1, -4]


def test_a_pattern_that_does_not_compile_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a regular expression"):
        score("regex", "", "", pattern="(")


def test_a_scorer_of_ones_own_is_known_by_being_defined() -> None:
    class Length(Scorer):
        name = "test_length"

        def __call__(self, generated: str, reference: str) -> float:
            return float(len(generated) == len(reference))

    assert score("test_length", "abc", "xyz") == 1
