"""Random numbers of rows: the same on every rank and in every batch, and random."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.batching.noise import normal, uniform

number = st.integers(0, 2**63 - 1)


@given(st.lists(number, min_size=1, max_size=20), st.integers(1, 9), number, st.integers(0, 3))
def test_a_row_draws_the_same_in_any_company(rows: list[int], size: int, seed: int, stream: int) -> None:
    together = normal(torch.tensor(rows), size, seed=seed, stream=stream)
    for draw, row in zip(together, rows, strict=True):
        assert torch.equal(normal(torch.tensor([row]), size, seed=seed, stream=stream)[0], draw)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_shape_has_the_numbers_of_its_size(draw: Callable[..., torch.Tensor]) -> None:
    rows = torch.arange(5)
    assert torch.equal(draw(rows, (3, 2), seed=1), draw(rows, 6, seed=1).reshape(5, 3, 2))
    assert torch.equal(draw(rows, (), seed=1), draw(rows, 1, seed=1)[:, 0])
    assert draw(rows[:0], (3, 2)).shape == (0, 3, 2)


def test_first_numbers_do_not_change() -> None:
    """A change here changes what every run draws that is resumed."""
    numbers = uniform(torch.tensor([0, 1, 2**40]), 2, seed=42, stream=1)
    assert numbers.flatten().tolist() == pytest.approx(FIRST, abs=1e-15)


FIRST = [
    0.6197261498140865,
    0.23376157421645177,
    0.2753640862648508,
    0.17583661459252659,
    0.7278994561740006,
    0.3118918811515266,
]


@pytest.mark.parametrize("rows", [torch.arange(200_000), torch.arange(0, 200_000 * 1024, 1024)])
def test_is_uniform_and_independent(rows: torch.Tensor) -> None:
    """Means, variances and correlations within 5 standard errors of those of independent uniform numbers."""
    n = len(rows)
    draws = torch.cat([uniform(rows, 2, seed=seed, stream=stream) for seed in (0, 1) for stream in (0, 1)], dim=1)
    assert draws.min() > 0
    assert draws.max() < 1
    bins = torch.stack([torch.histc(column, 64, 0, 1) for column in draws.T])
    assert ((bins - n / 64).abs() < 5 * math.sqrt(n / 64)).all()
    sequence_parallel_group = torch.cat([draws, draws.roll(1, 0)], dim=1)  # the next row's numbers too
    table = torch.corrcoef(sequence_parallel_group.T) - torch.eye(sequence_parallel_group.shape[1])
    assert table.abs().max() < 5 / math.sqrt(n)


def test_is_normal() -> None:
    draws = normal(torch.arange(100_000), 3, seed=7)
    assert draws.dtype == torch.float32
    assert draws.mean(0).abs().max() < 5 / math.sqrt(len(draws))
    assert (draws.var(0) - 1).abs().max() < 5 * math.sqrt(2 / len(draws))
    assert (draws.pow(4).mean(0) - 3).abs().max() < 5 * math.sqrt(96 / len(draws))
    share = (draws.abs() < 1).float().mean(0)
    assert (share - math.erf(1 / math.sqrt(2))).abs().max() < 5 * 0.5 / math.sqrt(len(draws))
