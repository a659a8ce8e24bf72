"""Losses of policies: worked out by hand, by autograd, and what must always hold."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.loss.policy import (
    clipped_surrogate_losses,
    group_advantages,
    kl_estimates,
    leave_one_out_means,
    segment_sums,
    sequence_log_ratios,
    truncated_importance_losses,
)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_advantages_worked_out() -> None:
    rewards = torch.stack([numbers(1, 0, 0, 1), numbers(3, 0, 0, 0)])
    assert group_advantages(rewards, scale=False).tolist() == [[0.5, -0.5, -0.5, 0.5], [2.25, -0.75, -0.75, -0.75]]
    deviation = math.sqrt((2.25**2 + 3 * 0.75**2) / 4)
    computed = group_advantages(rewards).flatten().tolist()
    assert computed == pytest.approx([1, -1, -1, 1, 2.25 / deviation, *[-0.75 / deviation] * 3])


groups = st.integers(2, 8).flatmap(
    lambda n: st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=n, max_size=n), min_size=1, max_size=5)
)


@given(groups, st.booleans())
def test_advantages_of_any_rewards(rewards: list[list[float]], scale: bool) -> None:
    computed = group_advantages(torch.tensor(rewards, dtype=torch.float64), scale=scale)
    assert computed.isfinite().all()
    for group, advantages in zip(rewards, computed, strict=True):
        assert abs(float(advantages.sum())) < 1e-6
        if len(set(group)) == 1:
            assert not advantages.any(), "a group with equal rewards contributes nothing"
        order = sorted(range(len(group)), key=group.__getitem__)
        assert all(advantages[a] <= advantages[b] for a, b in pairwise(order))


@given(st.floats(-1e2, 1e2), st.integers(2, 9))
def test_equal_rewards_are_worth_exactly_nothing(reward: float, count: int) -> None:
    """Their mean may differ from each of them by rounding, which scaling would blow up."""
    assert not group_advantages(torch.full((1, count), reward, dtype=torch.float64)).any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "learns"),
    [
        (1.0, 2.0, -2.0, True),
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.6, False),  # 1 + high = 1.3
        (0.5, 2.0, -1.0, True),  # below the bound, and better than it was: it may come back
        (0.5, -2.0, 1.6, False),  # 1 - low = 0.8
        (1.5, -2.0, 3.0, True),
    ],
)
def test_the_surrogate_worked_out(ratio: float, advantage: float, expected: float, learns: bool) -> None:
    old = numbers(-1.0)
    new = (old + math.log(ratio)).requires_grad_()
    loss = clipped_surrogate_losses(new - old, numbers(advantage), low=0.2, high=0.3)
    assert loss.item() == pytest.approx(expected)
    (slope,) = torch.autograd.grad(loss.sum(), new)
    assert slope.item() == pytest.approx(-advantage * ratio if learns else 0.0)


def test_on_policy_the_gradient_is_that_of_reinforce() -> None:
    new = numbers(-1.0, -2.0, -0.5).requires_grad_()
    advantages = numbers(0.3, -1.0, 2.0)
    (slope,) = torch.autograd.grad(
        clipped_surrogate_losses(new - new.detach(), advantages, low=0.2, high=0.2).sum(), new
    )
    assert torch.equal(slope, -advantages)


@given(st.lists(st.floats(-8, 3), min_size=2, max_size=6), st.lists(st.floats(-8, 3), min_size=2, max_size=6))
def test_the_divergence_is_estimated_without_bias_and_never_negative(one: list[float], other: list[float]) -> None:
    size = min(len(one), len(other))
    policy, reference = numbers(*one[:size]).log_softmax(0), numbers(*other[:size]).log_softmax(0)
    estimates = kl_estimates(policy, reference)
    assert (estimates >= -1e-12).all()
    exact = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * estimates).sum().item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-9)


def test_sums_over_completions() -> None:
    sums = segment_sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1, 3]))
    assert sums.tolist() == [1.0, 14.0]


def test_a_reward_of_nan_is_left_out_of_its_group() -> None:
    nan = math.nan
    rewards = torch.stack([numbers(1, nan, 0, nan), numbers(nan, nan, nan, nan), numbers(2, nan, nan, nan)])
    assert group_advantages(rewards).tolist() == [[1, 0, -1, 0], [0] * 4, [0] * 4]
    assert group_advantages(rewards, scale=False)[0].tolist() == [0.5, 0, -0.5, 0]
    means = leave_one_out_means(rewards)
    assert means[0, 0] == 0 and means[0, 2] == 1 and means[2, 0] == 2


@given(groups)
def test_a_completion_is_compared_with_the_others(rewards: list[list[float]]) -> None:
    values = torch.tensor(rewards, dtype=torch.float64)
    for group, means in zip(values.tolist(), leave_one_out_means(values), strict=True):
        expected = [sum(group[:n] + group[n + 1 :]) / (len(group) - 1) for n in range(len(group))]
        assert means.tolist() == pytest.approx(expected, abs=1e-6)
    # Ahmadian et al. 2024: it is the advantage over the mean of all, times n / (n - 1)
    count = values.shape[1]
    over_all = (values - values.mean(1, keepdim=True)) * count / (count - 1)
    assert torch.allclose(values - leave_one_out_means(values), over_all, atol=1e-6)


def test_the_ratio_of_a_completion_is_the_geometric_mean_of_those_of_its_tokens() -> None:
    ratios, lengths = torch.tensor([0.1, 0.3, -0.6, 0.5]), torch.tensor([3, 1])
    assert sequence_log_ratios(ratios, lengths).tolist() == pytest.approx([-0.2 / 3] * 3 + [0.5])
    new = ratios.clone().requires_grad_()
    advantages = torch.tensor([2.0, 2.0, 2.0, -1.0])
    losses = clipped_surrogate_losses(sequence_log_ratios(new, lengths), advantages, low=0.9, high=0.9)
    (segment_sums(losses, lengths) / lengths).sum().backward()
    # Zheng et al. 2025, equation 10: every token of a completion has the same weight
    expected = [-2 * math.exp(-0.2 / 3) / 3] * 3 + [math.exp(0.5)]
    assert new.grad is not None and new.grad.tolist() == pytest.approx(expected)


def test_a_truncated_weight_keeps_the_gradient() -> None:
    new = numbers(-1.0, -2.0, -3.0).requires_grad_()
    ratios, advantages = numbers(math.log(2.0), math.log(0.1), 0.0), numbers(1.0, -2.0, 0.5)
    losses = truncated_importance_losses(new, ratios + new - new.detach(), advantages, high=0.3)
    assert losses.tolist() == pytest.approx([1.3, -0.4, 1.5])
    (slope,) = torch.autograd.grad(losses.sum(), new)
    assert slope.tolist() == pytest.approx([-1.3, 0.2, -0.5])
