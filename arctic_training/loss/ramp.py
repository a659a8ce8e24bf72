"""Ramps: monotone functions from 0 at place 0 to 1 at place 1, both exactly."""

import math

_STEEPNESS = 10.0
"""Slope of the argument of the sigmoid: it is cut off at -5 and 5 before it is scaled."""


def sigmoid_ramp(place: float) -> float:
    """Returns the logistic function between its values at -5 and 5, scaled to go from 0 to 1; ``place`` is in [0, 1].

    It is steepest in the middle, where it is 1/2.
    """
    start, end = _sigmoid(-_STEEPNESS / 2), _sigmoid(_STEEPNESS / 2)
    return (_sigmoid(_STEEPNESS * (place - 0.5)) - start) / (end - start)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
