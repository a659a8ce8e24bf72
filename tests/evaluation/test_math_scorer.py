"""What the scorer math calls equal."""

import threading

import pytest

from arctic_training.config.sections.component import parse_component
from arctic_training.evaluation.math_scorer import MathScorer


def score(generated: str, reference: str) -> float | None:
    return MathScorer(parse_component("scorer", {"type": "math"}))(generated, reference)


@pytest.mark.parametrize(
    ("generated", "reference", "expected"),
    [
        ("so it is $\\frac{1}{2}$", "0.5", 1),
        ("the answer is 1/2", "\\frac{1}{2}", 1),
        ("\\boxed{2\\sqrt{3}}", "\\sqrt{12}", 1),
        ("first 3, then $x = 4$", "4", 1),
        ("$\\{1, 2\\}$", "$\\{2, 1\\}$", 1),
        ("$x^2 + 2x + 1$", "$(x+1)^2$", 1),
        ("$(1, 2]$", "$[1, 2)$", 0),
        ("0.51", "1/2", 0),
        ("I do not know", "1", 0),
        ("1", "", 0),
    ],
)
def test_table(generated: str, reference: str, expected: float) -> None:
    assert score(generated, reference) == expected


def test_it_works_outside_the_main_thread() -> None:
    values: list[float | None] = []
    thread = threading.Thread(target=lambda: values.append(score("$\\frac{2}{4}$", "1/2")))
    thread.start()
    thread.join()
    assert values == [1]
