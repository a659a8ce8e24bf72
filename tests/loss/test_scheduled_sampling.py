"""Schedules of scheduled sampling: exact at both ends, rising, and of the shapes of the paper."""

import math
from itertools import pairwise

import pytest

from arctic_training.loss.scheduled_sampling import SamplingSchedule, sampling_probability

SCHEDULES: list[SamplingSchedule] = ["linear", "exponential", "inverse_sigmoid"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 7, 1000])
@pytest.mark.parametrize("final", [0.1, 1.0])
def test_the_ends_are_exact_and_it_never_falls(schedule: SamplingSchedule, steps: int, final: float) -> None:
    values = [sampling_probability(schedule, step, steps=steps, final=final) for step in range(steps + 3)]
    assert values[0] == 0.0
    assert values[steps:] == [final] * 3
    assert values == sorted(values)


def test_without_a_schedule_nothing_is_replaced() -> None:
    assert {sampling_probability("none", step, steps=4, final=0.5) for step in range(9)} == {0.0}


def test_the_line_is_straight() -> None:
    assert [sampling_probability("linear", step, steps=8, final=0.5) for step in (2, 4, 6)] == [0.125, 0.25, 0.375]


def test_the_share_of_true_inputs_falls_by_the_same_factor_at_every_step() -> None:
    """k^i, before it is scaled: what is left of the way to the limit is multiplied by one number at each step."""
    limit = 1 / (1 - math.exp(-5))
    left = [limit - sampling_probability("exponential", step, steps=10, final=1.0) for step in range(11)]
    factors = [after / before for before, after in pairwise(left)]
    assert factors == pytest.approx([math.exp(-0.5)] * 10)


def test_the_sigmoid_is_half_in_the_middle_and_symmetric() -> None:
    values = [sampling_probability("inverse_sigmoid", step, steps=10, final=0.6) for step in range(11)]
    assert values[5] == pytest.approx(0.3)
    assert [a + b for a, b in zip(values, reversed(values), strict=True)] == pytest.approx([0.6] * 11)
    rises = [after - before for before, after in pairwise(values)]
    assert rises[:5] == sorted(rises[:5]) and rises[5:] == sorted(rises[5:], reverse=True)
    # unscaled it is k / (k + exp(i / k)), whose logits are a line
    start = 1 / (1 + math.exp(5))
    shares = [start + (1 - 2 * start) * value / 0.6 for value in values]
    logits = [math.log(share / (1 - share)) for share in shares]
    assert [after - before for before, after in pairwise(logits)] == pytest.approx([1.0] * 10)


@pytest.mark.parametrize(("step", "steps"), [(-1, 3), (0, 0)])
def test_a_step_that_does_not_exist_is_refused(step: int, steps: int) -> None:
    with pytest.raises(ValueError, match=rf"step {step} of {steps} steps"):
        sampling_probability("linear", step, steps=steps, final=1.0)
