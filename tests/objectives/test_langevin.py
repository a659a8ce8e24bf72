"""Chains of Langevin dynamics: their steps by hand, and the distributions that they leave as they are."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from arctic_training import normal
from arctic_training.objectives.langevin import Chains, Langevin


def gaussian(rows: Tensor) -> Tensor:
    """The energy of the standard normal distribution."""
    return rows.flatten(1).square().sum(1) / 2


def run(langevin: Langevin, rows: Tensor, seed: int = 3) -> Chains:
    return langevin(gaussian, rows, torch.arange(len(rows)), seed=seed, stream=10)


def test_steps_by_hand() -> None:
    """x' = (1 - h / 2) x + sqrt(h) n for the energy x^2 / 2, with noise of the stream of each step."""
    rows, draw = torch.randn(5, 2), torch.arange(5)
    expected = rows
    for step in range(3):
        expected = 0.9 * expected + math.sqrt(0.2) * normal(draw, 2, seed=3, stream=10 + 2 * step)
    chains = run(Langevin(3, 0.2), rows)
    torch.testing.assert_close(chains.rows, expected)
    assert chains.accepted.tolist() == [1] * 5 and not chains.rows.requires_grad
    still = run(Langevin(3, 0.2, noise_scale=0), rows)
    torch.testing.assert_close(still.rows, 0.9**3 * rows)


def test_a_large_gradient_is_scaled_down() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    ends = run(Langevin(1, 2.0, noise_scale=0, max_gradient=1), rows).rows
    torch.testing.assert_close(ends, torch.tensor([[3 - 0.6, 4 - 0.8], [0.0, 0.0]]))


def test_unadjusted_chains_have_a_known_variance() -> None:
    """h / (1 - (1 - h / 2)^2) = 1 / (1 - h / 4), of a linear recursion."""
    rows = run(Langevin(60, 0.4), torch.zeros(40_000, 1)).rows
    assert float(rows.var()) == pytest.approx(1 / 0.9, rel=4 * math.sqrt(2 / 40_000))


def test_half_the_noise_samples_a_sharper_density() -> None:
    """exp(-E step_size / noise_scale^2): with half of the noise a quarter of the variance, for small steps."""
    rows = run(Langevin(300, 0.05, noise_scale=math.sqrt(0.05) / 2), torch.zeros(10_000, 1)).rows
    assert float(rows.var()) == pytest.approx(0.25 / (1 - 0.05 / 4), rel=0.06)


@pytest.mark.parametrize("keys", [{}, {"noise_scale": 0.7}, {"max_gradient": 0.8}])
def test_corrected_chains_leave_the_distribution_as_it_is(keys: dict[str, float]) -> None:
    """Steps are so large that uncorrected ones would not: their variance is another by a half or more."""
    start = normal(torch.arange(20_000), 1, seed=1)
    corrected = run(Langevin(12, 1.6, metropolis=True, **keys), start)
    share = float(corrected.accepted.mean())
    assert 0.3 < share < 0.98
    assert float((corrected.rows != start).double().mean()) > 0.9
    assert stats.kstest(corrected.rows[:, 0].numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(run(Langevin(12, 1.6, **keys), start).rows[:, 0].numpy(), "norm").pvalue < 1e-6


def test_corrected_chains_reach_the_distribution() -> None:
    rows = run(Langevin(60, 0.8, metropolis=True), torch.full((20_000, 1), 3.0)).rows
    assert stats.kstest(rows[:, 0].numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("metropolis", [False, True])
def test_a_chain_depends_on_its_own_number_alone(metropolis: bool) -> None:
    """In whichever batch it is, and wherever in it."""
    rows, draw, langevin = torch.randn(6, 2), torch.arange(6) + 100, Langevin(4, 0.5, metropolis=metropolis)
    together = langevin(gaussian, rows, draw, seed=3, stream=0)
    order = torch.tensor([4, 1, 5])
    apart = langevin(gaussian, rows[order], draw[order], seed=3, stream=0)
    torch.testing.assert_close(apart.rows, together.rows[order])
    assert not torch.equal(together.rows, langevin(gaussian, rows, draw, seed=4, stream=0).rows)


def test_a_step_to_no_energy_is_refused() -> None:
    """An energy that is not a number, as of an overflow, is never accepted."""
    half = lambda rows: (rows.square() / 2 - (-rows).log())[:, 0]  # noqa: E731
    chains = Langevin(5, 1.0, metropolis=True)(half, torch.full((50, 1), -0.5), torch.arange(50), seed=0, stream=0)
    assert bool((chains.rows < 0).all()) and float(chains.rows.std()) > 0.1


def test_no_rows() -> None:
    assert run(Langevin(2, 0.1, metropolis=True), torch.zeros(0, 2)).rows.shape == (0, 2)
