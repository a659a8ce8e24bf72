"""Symbolic tasks: the answers are right, and models learn them."""

import sys
from itertools import islice, product
from pathlib import Path
from types import ModuleType

import pytest

from arctic_training import get_config
from arctic_training.registry import lookup

PROJECT = Path(__file__).parents[2] / "projects" / "symbolic"
TASKS = ("running_sums", "polynomial_sum")


@pytest.fixture(scope="module")
def project() -> ModuleType:
    get_config(PROJECT / "sums.yaml")
    return sys.modules[lookup("data_source", "symbolic").__module__]


def take(project: ModuleType, task: str, split: str, seed: int = 0, count: int = 300) -> list[dict[str, str]]:
    return list(islice(project.problems(task, split, seed), count))


@pytest.mark.parametrize("task", TASKS)
def test_no_problem_is_both_trained_on_and_held_out(project: ModuleType, task: str) -> None:
    splits = [take(project, task, "train"), take(project, task, "train", seed=1), take(project, task, "eval")]
    first, second, held = ({row["problem"] for row in rows} for rows in splits)
    assert len(first) == len(second) == len(held) == 300
    assert not (first | second) & held and first != second
    assert take(project, task, "train") == splits[0]


def test_sums_are_right(project: ModuleType) -> None:
    for row in take(project, "running_sums", "train"):
        numbers = [int(word) for word in row["problem"].split()]
        assert row["answer"] == " ".join(str(sum(numbers[: n + 1]) % 17) for n in range(4))


def value(polynomial: str, x: int, y: int) -> int:
    terms = [[int(word[1:]) for word in term.split()] for term in polynomial.split(" + ")]
    return sum(c * x**a * y**b for c, a, b in terms) % 7


def test_a_sum_of_polynomials_has_the_sum_of_their_values_everywhere(project: ModuleType) -> None:
    for row in take(project, "polynomial_sum", "train"):
        summands = row["problem"].split(" | ")
        for x, y in product(range(7), repeat=2):
            assert sum(value(one, x, y) for one in summands) % 7 == value(row["answer"], x, y)
        exponents = [term.split()[1:] for term in row["answer"].split(" + ")]
        assert exponents == sorted(exponents, reverse=True) and len(set(map(tuple, exponents))) == len(exponents)
        assert ("C0" in row["answer"]) == (row["answer"] == "C0 E0 E0")
    assert project.write({}) == "C0 E0 E0"
