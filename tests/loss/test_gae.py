"""Advantages from values: by closed forms, by a loop over one completion, and what must always hold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.loss.gae import discounted_returns, generalized_advantages, value_losses

lengths_of = st.lists(st.integers(1, 6), min_size=1, max_size=5)
shares = st.floats(0, 1)


def rows(lengths: list[int], seed: int) -> torch.Tensor:
    return torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(lengths_of, shares, shares, st.integers(0, 99))
def test_advantages_are_the_sum_of_the_formula(lengths: list[int], gamma: float, trust: float, seed: int) -> None:
    rewards, values = rows(lengths, seed), rows(lengths, seed + 1)
    computed = generalized_advantages(rewards, values, torch.tensor(lengths), gamma=gamma, gae_lambda=trust)
    expected: list[float] = []
    for reward, value in zip(rewards.split(lengths), values.split(lengths), strict=True):
        after = [*value.tolist()[1:], 0.0]
        residuals = [r + gamma * v - w for r, v, w in zip(reward.tolist(), after, value.tolist(), strict=True)]
        for start in range(len(residuals)):
            expected.append(sum((gamma * trust) ** k * one for k, one in enumerate(residuals[start:])))
    assert computed.tolist() == pytest.approx(expected, abs=1e-9)


@given(lengths_of, shares, st.integers(0, 99))
def test_the_ends_of_lambda(lengths: list[int], gamma: float, seed: int) -> None:
    """At 1 advantages are returns less values, whatever these are; at 0 the residual of one token."""
    rewards, values, sizes = rows(lengths, seed), rows(lengths, seed + 1), torch.tensor(lengths)
    far = generalized_advantages(rewards, values, sizes, gamma=gamma, gae_lambda=1.0)
    assert torch.allclose(far, discounted_returns(rewards, sizes, gamma=gamma) - values)
    near = generalized_advantages(rewards, values, sizes, gamma=gamma, gae_lambda=0.0)
    last = sizes.cumsum(0) - 1
    assert torch.allclose(near[last], (rewards - values)[last])


def test_a_reward_at_the_end_is_discounted_geometrically() -> None:
    rewards = torch.tensor([0.0, 0.0, 0.0, 8.0, 0.0, 4.0], dtype=torch.float64)
    computed = discounted_returns(rewards, torch.tensor([4, 2]), gamma=0.5)
    assert computed.tolist() == [1, 2, 4, 8, 2, 4]


@pytest.mark.parametrize(
    ("value", "old", "target", "expected", "learns"),
    [
        (1.0, 1.0, 3.0, 2.0, True),
        (1.1, 1.0, 3.0, 1.805, True),
        (1.5, 1.0, 3.0, 1.62, False),  # it has come nearer by more than 0.2
        (0.5, 1.0, 3.0, 3.125, True),  # and further away: the larger error counts
    ],
)
def test_a_clipped_value_worked_out(value: float, old: float, target: float, expected: float, learns: bool) -> None:
    now = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    old_value, goal = torch.tensor([old], dtype=torch.float64), torch.tensor([target], dtype=torch.float64)
    loss = value_losses(now, old_value, goal, clip=0.2)
    assert loss.item() == pytest.approx(expected)
    (slope,) = torch.autograd.grad(loss.sum(), now)
    assert (slope.item() != 0) == learns
    assert value_losses(now, old_value, goal, clip=None).item() == pytest.approx((value - target) ** 2 / 2)
