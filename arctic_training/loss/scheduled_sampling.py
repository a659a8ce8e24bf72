"""Schedules of scheduled sampling: how many inputs are the model's own predictions, as a function of the step."""

import math
from typing import Literal

from arctic_training.loss.ramp import sigmoid_ramp

SamplingSchedule = Literal["none", "linear", "exponential", "inverse_sigmoid"]

_RATE = 5.0
"""Of the exponential: the share of true inputs falls to exp(-5) of itself before it is scaled to end exactly."""


def sampling_probability(schedule: SamplingSchedule, step: int, *, steps: int, final: float) -> float:
    """Returns the probability with which an input is replaced by the prediction for it: 0 at step 0, and ``final`` from
    step ``steps`` on, both exactly. ``none`` is 0 at every step.

    In between it follows the decays of Bengio et al. 2015 (arXiv 1506.03099, section 2.4), scaled to these ends: the
    line; the exponential k^i, steepest at the start; and the inverse sigmoid k / (k + exp(i / k)), steepest in the
    middle, where it is half of ``final``. Raises ValueError for a negative step, or a schedule without steps.
    """
    if step < 0 or steps < 1:
        raise ValueError(f"step {step} of {steps} steps: expected a step from 0 on, and at least one step")
    if schedule == "none":
        return 0.0
    place = min(step / steps, 1.0)
    if schedule == "exponential":
        place = math.expm1(-_RATE * place) / math.expm1(-_RATE)
    elif schedule == "inverse_sigmoid":
        place = sigmoid_ramp(place)
    return final * place
