"""What the scorer polynomial_equal calls equal."""

from typing import Any

import pytest

from arctic_training.config.sections.component import parse_component
from arctic_training.evaluation.polynomial_scorer import PolynomialEqualScorer
from tests.work import calls


def score(generated: str, reference: str, **keys: Any) -> float:
    return PolynomialEqualScorer(parse_component("scorer", {"type": "polynomial_equal", **keys}))(generated, reference)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("generated", "reference", "field", "expected"),
    [
        ("x0 + x1", "x1+x0", "QQ", 1),
        ("(x0 + 1)*(x0 - 1)", "x0^2 - 1", "ZZ", 1),
        ("-(x0 - 2*x1)^3", "8*x1^3 - 12*x0*x1^2 + 6*x0^2*x1 - x0^3", "ZZ", 1),
        ("x0 / 2 + 1/3", "3/6*x0 + 2/6", "QQ", 1),
        ("0.5*x0", "x0/2", "QQ", 1),
        ("1 2*x0", "12*x0", "QQ", 1),  # groups of digits
        ("6*x0", "-x0", "GF(7)", 1),
        ("x0/3", "5*x0", "GF(7)", 1),
        ("8", "1", "GF(7)", 1),
        ("7*x5 + x0", "x0", "GF(7)", 1),
        ("C3 E1 E0 + C1 E0 E2", "x1^2 + 3*x0", "QQ", 1),
        ("C1 E0 E2 + C2 E1 E0 + C1 E1 E0", "C3 E1 E0 + C1 E0 E2", "QQ", 1),
        ("C-1/2 E1", "-x0/2", "QQ", 1),
        ("C0 E0 E0", "0", "GF(7)", 1),
        ("0.1*x0 + 0.2*x0", "0.3*x0", "RR", 1),
        ("x0 | x1", "x0|x1", "QQ", 1),
        ("x1 | x0", "x0 | x1", "QQ", 0),
        ("x0", "x0 | x1", "QQ", 0),
        ("x0 + x1", "x0 - x1", "QQ", 0),
        ("x0", "x1", "QQ", 0),
        ("x0^2", "x0", "GF(2)", 0),  # polynomials, not functions
        ("0.31*x0", "0.3*x0", "RR", 0),
        ("x0/2", "x0", "ZZ", 0),
        ("x0/7", "x0", "GF(7)", 0),
        ("1/x0", "x0", "QQ", 0),
        ("x0/0", "x0", "QQ", 0),
        ("C1 E0 +", "1", "QQ", 0),
        ("C1 E0 + C1 E0 E0", "1", "QQ", 0),
        ("x0 + [UNK]", "x0", "QQ", 0),
        ("", "x0", "QQ", 0),
        ("x0 +", "x0", "QQ", 0),
        ("x0 < 1", "x0", "QQ", 0),
        ("__import__('os').getcwd()", "x0", "QQ", 0),
        ("x0 ** 2", "x0^2", "QQ", 0),
    ],
)
def test_table(generated: str, reference: str, field: str, expected: float) -> None:
    assert score(generated, reference, field=field) == expected


def test_values_at_points_agree_with_python() -> None:
    """Of random products and sums, the expanded ones are equal, and those with another constant are not."""
    import random

    draw = random.Random(0)
    for _ in range(30):
        factors = [
            "(" + " + ".join(f"{draw.randint(-5, 5)}*x{draw.randrange(3)}" for _ in range(3)) + ")" for _ in "ab"
        ]
        product = "*".join(factors)
        pairs = [one.strip("()").split(" + ") for one in factors]
        expanded = " + ".join(f"({a})*({b})" for a in pairs[0] for b in pairs[1])
        assert score(product, expanded, field="ZZ") == 1
        assert score(f"{product} + 1", expanded, field="ZZ") == 0


@pytest.mark.parametrize(
    "text",
    [
        "9^1000^1000",
        "(((9^1000)^1000)^1000)",
        "(x0 + x1 + x2 + x3)^1000",
        "*".join(f"(x{n} + y{n})" for n in range(60)),
        "(" * 5000 + "1" + ")" * 5000,
        "-" * 15_000 + "1",
        "9" * 15_000,
        "x0" * 20_000,
    ],
)
def test_a_text_that_would_take_for_ever_is_wrong_at_once(text: str) -> None:
    assert calls(lambda: score(text, "x0")) < 3_000_000
    assert score(text, "x0") == 0


def test_a_long_sum_is_read() -> None:
    long = " + ".join(f"{n}*x0^{n}" for n in range(1, 900))
    assert score(long, " + ".join(f"x0^{n}*{n}" for n in range(899, 0, -1))) == 1


def test_a_reference_that_is_no_polynomial_is_an_error() -> None:
    with pytest.raises(ValueError, match="'x0 \\+' is no polynomial over QQ"):
        score("x0", "x0 +")
