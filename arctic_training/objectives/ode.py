"""Solvers of ordinary differential equations with steps of equal size."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Solver = Literal["euler", "heun", "rk4"]


def solve_ode(
    derivative: Callable[[Tensor, float], Tensor],
    state: Tensor,
    *,
    start: float,
    end: float,
    steps: int,
    solver: Solver = "heun",
) -> Tensor:
    """Returns the state at the time ``end`` of what is ``state``, ``[...]``, at the time ``start``, earlier or later.

    ``derivative(state, time)`` is its derivative by the time. Over a fixed stretch of time the error falls as a power
    of the number of ``steps``: the first with euler, the second with heun, the fourth with rk4 (Hairer, Norsett and
    Wanner 1993, chapter II). They call ``derivative`` once, twice and four times a step.
    """
    size = (end - start) / steps
    for step in range(steps):
        time, middle, after = (start + (end - start) * (step + part) / steps for part in (0, 0.5, 1))
        first = derivative(state, time)
        if solver == "euler":
            slope = first
        elif solver == "heun":
            slope = (first + derivative(state + size * first, after)) / 2
        else:
            second = derivative(state + size / 2 * first, middle)
            third = derivative(state + size / 2 * second, middle)
            slope = (first + 2 * second + 2 * third + derivative(state + size * third, after)) / 6
        state = state + size * slope
    return state
