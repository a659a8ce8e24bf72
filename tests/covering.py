"""Pairwise coverings: a few rows of settings instead of their product, in which every two settings still meet."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, TypeVar

Row = TypeVar("Row", bound=tuple[Any, ...])


def pairs(row: tuple[Any, ...]) -> set[Any]:
    """Returns every two values of a row with their columns."""
    return set(combinations(enumerate(row), 2))


def covering(rows: Sequence[Row], shown: Callable[[Row], set[Any]] = pairs) -> list[Row]:
    """Returns some of ``rows``; what one of all shows is shown by one of these, by default every two values.

    Each next row has most of the pairs which are still missing; of several such rows, it is the one whose values are
    the rarest so far. These are few rows, if not the fewest.
    """

    def worth(row: Row) -> tuple[int, int]:
        return len(shown(row) & missing), -sum(uses[value] for value in enumerate(row))

    missing = set().union(*map(shown, rows))
    uses: Counter[Any] = Counter()
    chosen: list[Row] = []
    while missing:
        chosen.append(max(rows, key=worth))
        missing -= shown(chosen[-1])
        uses.update(enumerate(chosen[-1]))
    return chosen
