"""Truncation, splitting, and rows cut from concatenated samples."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.batching.chunking import ConcatenatedRows, concat_and_chunk, split_samples, truncate
from arctic_training.data.preparation.samples import Samples


def samples(sizes: list[int]) -> Samples:
    """Samples whose tokens are 1000 * sample + position."""
    rows = [[1000 * n + place for place in range(size)] for n, size in enumerate(sizes)]
    return Samples(pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}))


def read(data: Any) -> list[list[int]]:
    return [data[n]["input_ids"].tolist() for n in range(len(data))]


SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=10)


@given(sizes=SIZES, length=st.integers(1, 9), seed=st.integers(0, 3))
def test_rows_are_the_samples_in_order(sizes: list[int], length: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(sizes))
    rows = ConcatenatedRows(*concat_and_chunk(samples(sizes), length, order))
    tokens = read(rows)
    assert [token for row in tokens for token in row] == [1000 * n + p for n in order for p in range(sizes[n])]
    assert all(len(row) == length for row in tokens[:-1])
    assert rows.lengths().tolist() == [len(row) for row in tokens]


@given(sizes=SIZES, length=st.integers(1, 9))
def test_whole_rows_only(sizes: list[int], length: int) -> None:
    rows = ConcatenatedRows(*concat_and_chunk(samples(sizes), length, np.arange(len(sizes)), drop_last=True))
    assert [len(row) for row in read(rows)] == [length] * (sum(sizes) // length)


@given(sizes=SIZES, length=st.integers(1, 9))
def test_pieces_do_not_cross_samples(sizes: list[int], length: int) -> None:
    pieces, rows = concat_and_chunk(samples(sizes), length, np.arange(len(sizes)))
    assert all(len({token // 1000 for token in piece}) == 1 for piece in read(pieces))
    assert sorted(int(n) for row in rows for n in row) == list(range(len(pieces)))


@given(sizes=SIZES, length=st.integers(1, 9))
def test_long_samples_in_pieces(sizes: list[int], length: int) -> None:
    tokens = read(split_samples(samples(sizes), length))
    assert [token for piece in tokens for token in piece] == [
        1000 * n + p for n, s in enumerate(sizes) for p in range(s)
    ]
    assert len(tokens) == sum(-(-size // length) for size in sizes)
    assert max(map(len, tokens)) <= length


def test_shortened() -> None:
    assert read(truncate(samples([2, 5]), 3)) == [[0, 1], [1000, 1001, 1002]]
