"""Mixtures: the number of rows of each source, and which."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.sources.mixing import sample_indices, sample_mixture


@given(size=st.integers(1, 40), count=st.integers(1, 120), seed=st.integers(0, 5))
def test_as_many_as_asked_for_and_as_evenly_as_can_be(size: int, count: int, seed: int) -> None:
    chosen = sample_indices(size, count, seed)
    counts = Counter(chosen.tolist())
    assert len(chosen) == count
    assert set(counts) <= set(range(size))
    assert max(counts.values()) - min(counts.get(n, 0) for n in range(size)) <= 1
    assert np.array_equal(chosen, sample_indices(size, count, seed))


def test_seeds_choose_differently() -> None:
    assert not np.array_equal(sample_indices(100, 20, 0), sample_indices(100, 20, 1))


def taken(sizes: list[int], *sections: dict[str, float]) -> list[int | None]:
    sources = [DataSourceConfig.model_validate(section) for section in sections]
    return [None if rows is None else len(rows) for rows in sample_mixture(sizes, sources)]


def test_amounts() -> None:
    assert taken([10, 10, 10, 10], {}, {"sample_count": 3}, {"sample_ratio": 0.25}, {"sample_ratio": 2.5}) == [
        None,
        3,
        2,
        25,
    ]


@given(
    sizes=st.lists(st.integers(10, 500), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
)
def test_weights_are_kept_and_no_row_is_repeated(sizes: list[int], weights: list[float]) -> None:
    weights = weights[: len(sizes)]
    counts = [count or 0 for count in taken(sizes, *({"weight": weight} for weight in weights))]
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert any(count == size for count, size in zip(counts, sizes, strict=True))  # one of them is used up
    unit = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    assert all(abs(count - unit * weight) <= 1 for count, weight in zip(counts, weights, strict=True))
