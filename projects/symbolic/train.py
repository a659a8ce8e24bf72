"""Symbolic tasks with exact answers: running sums modulo 17, and sums of polynomials over GF(7)."""

import hashlib
import random
from collections.abc import Callable, Iterator
from itertools import accumulate, count, islice
from typing import Any, Literal

from arctic_training import Callback, DataSource, DataSourceConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.distributed.process_group import is_main

Polynomial = dict[tuple[int, int], int]
"""The coefficient of each monomial, which the exponents of x and y name; none is 0."""


def running_sums(draw: random.Random, *, modulus: int = 17, length: int = 4) -> tuple[str, str]:
    """Returns numbers and their running sums modulo ``modulus``: ``3 5 16 2`` and ``3 8 7 9``."""
    numbers = [draw.randrange(modulus) for _ in range(length)]
    return " ".join(map(str, numbers)), " ".join(str(total % modulus) for total in accumulate(numbers))


def polynomial_sum(
    draw: random.Random, *, field: int = 7, terms: int = 3, degree: int = 2, summands: int = 2
) -> tuple[str, str]:
    """Returns polynomials in two variables over GF(``field``), and their sum: ``C3 E1 E0 + C1 E0 E0 | C4 E1 E0`` is
    3x + 1 and 4x, and ``C1 E0 E0`` their sum. Each has 1 to ``terms`` terms of exponents up to ``degree``."""
    monomials = [(x, y) for x in range(degree + 1) for y in range(degree + 1)]
    polynomials: list[Polynomial] = [
        {one: draw.randrange(1, field) for one in draw.sample(monomials, draw.randint(1, terms))}
        for _ in range(summands)
    ]
    total: Polynomial = {}
    for polynomial in polynomials:
        for one, coefficient in polynomial.items():
            total[one] = (total.get(one, 0) + coefficient) % field
    return " | ".join(map(write, polynomials)), write({one: value for one, value in total.items() if value})


def write(polynomial: Polynomial) -> str:
    """Returns a polynomial as text, the largest exponents first; 0 is ``C0 E0 E0``."""
    terms = sorted(polynomial.items(), reverse=True) or [((0, 0), 0)]
    return " + ".join(f"C{value} E{x} E{y}" for (x, y), value in terms)


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "running_sums": running_sums,
    "polynomial_sum": polynomial_sum,
}


def problems(task: str, split: str, seed: int) -> Iterator[dict[str, str]]:
    """Yields different problems of ``task`` and their answers, without end.

    Problem i is drawn from a generator that is seeded by seed, split and i. One problem in eight is held out, by its
    own hash, so that no seed and no number of problems mixes training and evaluation.
    """
    seen: set[str] = set()
    for number in count():
        problem, answer = TASKS[task](random.Random(f"{seed} {split} {number}"))
        held_out = hashlib.sha256(problem.encode()).digest()[0] < 32
        if held_out == (split != "train") and problem not in seen:
            seen.add(problem)
            yield {"problem": problem, "answer": answer}


class SymbolicConfig(DataSourceConfig):
    """Keys of the source."""

    task: Literal["running_sums", "polynomial_sum"]
    """What is to be computed."""
    count: HumanInt = 10_000
    """Problems."""
    seed: int = 0


class SymbolicSource(DataSource):
    """Problems and their answers."""

    name = "symbolic"
    config_type = SymbolicConfig

    def load(self, config: SymbolicConfig, split: str) -> Any:
        from datasets import Dataset

        return Dataset.from_list(list(islice(problems(config.task, split, config.seed), config.count)))


class PrintFigures(Callback):
    """Prints the share of right answers and of right tokens."""

    name = "symbolic_figures"

    def post_evaluate(self, trainer: Any, values: dict[str, float]) -> None:
        if is_main():
            right, tokens = values["exact_match/eval"], values["token_accuracy/eval"]
            print(f"generated answers that are right: {right:.1%}, tokens: {tokens:.1%}", flush=True)
