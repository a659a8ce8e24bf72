"""Solvers of fixed steps, against scipy's of any precision, and the order of their errors."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from arctic_training.objectives.ode import Solver, solve_ode

START = torch.tensor([[1.0, 0.0], [0.3, -2.0]], dtype=torch.float64)


def pendulum(state: Tensor, time: float) -> Tensor:
    """A driven pendulum: angle and speed."""
    angle, speed = state.unbind(-1)
    return torch.stack([speed, -angle.sin() - 0.2 * speed + 0.5 * np.cos(3 * time)], dim=-1)


def exact(start: float, end: float) -> Tensor:
    rows = [
        solve_ivp(lambda time, y: pendulum(torch.tensor(y), time).numpy(), (start, end), row, rtol=1e-12, atol=1e-12)
        for row in START.numpy()
    ]
    return torch.tensor(np.stack([one.y[:, -1] for one in rows]))


@pytest.mark.parametrize(("start", "end"), [(0, 2), (1, 0)])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_the_error_falls_with_the_order(solver: Solver, order: int, start: float, end: float) -> None:
    errors = [
        float((solve_ode(pendulum, START, start=start, end=end, steps=steps, solver=solver) - exact(start, end)).norm())
        for steps in (40, 80)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)
    assert errors[1] < {1: 0.1, 2: 2e-3, 4: 1e-6}[order]


def test_the_last_time_is_the_end() -> None:
    times: list[float] = []

    def derivative(state: Tensor, time: float) -> Tensor:
        times.append(time)
        return state

    solve_ode(derivative, torch.ones(1), start=1, end=0, steps=7, solver="rk4")
    assert len(times) == 28 and times[0] == 1 and times[-1] == 0
