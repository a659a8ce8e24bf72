"""Pairwise coverings: a few rows of settings instead of their product, in which every two settings still meet."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any, TypeVar

Row = TypeVar("Row", bound=tuple[Any, ...])


def covering(rows: Sequence[Row]) -> list[Row]:
    """Returns some of ``rows``; each pair of values of two columns that is in one of all is in one of these too.

    Each next row has most of the pairs which are still missing; of several such rows, it is the one whose values are
    the rarest so far. These are few rows, if not the fewest.
    """

    def pairs(row: Row) -> set[Any]:
        return set(combinations(enumerate(row), 2))

    def worth(row: Row) -> tuple[int, int]:
        return len(pairs(row) & missing), -sum(uses[value] for value in enumerate(row))

    missing = set().union(*map(pairs, rows))
    uses: Counter[Any] = Counter()
    chosen: list[Row] = []
    while missing:
        chosen.append(max(rows, key=worth))
        missing -= pairs(chosen[-1])
        uses.update(enumerate(chosen[-1]))
    return chosen
