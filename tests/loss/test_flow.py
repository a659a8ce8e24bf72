"""Flow matching: its times against scipy's distributions, its divergence against Jacobians, its loss by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from arctic_training.loss.flow import (
    TimeSampling,
    flow_matching_losses,
    flow_times,
    linear_path,
    normal_log_probs,
    with_divergences,
)

UNIFORMS = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)


def logit_normal_density(time: float) -> float:
    return float(stats.norm.pdf(math.log(time / (1 - time)))) / (time * (1 - time))


def u_shaped_density(time: float) -> float:
    return 4 / (math.exp(4) - 1) * (math.exp(4 * time) + math.exp(4 * (1 - time))) / 2


@pytest.mark.parametrize(
    ("kind", "density"),
    [("uniform", lambda time: 1.0), ("logit_normal", logit_normal_density), ("u_shaped", u_shaped_density)],
)
def test_times_are_the_quantiles_of_their_density(kind: TimeSampling, density: object) -> None:
    times = flow_times(kind, UNIFORMS)
    assert times.dtype == torch.float64 and bool((times.diff() > 0).all())
    shares = [integrate.quad(density, 0, time)[0] for time in times.tolist()]
    np.testing.assert_allclose(shares, UNIFORMS.numpy(), atol=1e-7)
    assert integrate.quad(density, 0, 1)[0] == pytest.approx(1)


def test_the_target_is_data_minus_noise_wherever_the_point_is() -> None:
    noise, data = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 0.0]]])
    assert linear_path(noise, data, torch.tensor([0.0])).tolist() == noise.tolist()
    assert linear_path(noise, data, torch.tensor([1.0])).tolist() == data.tolist()
    assert linear_path(noise, data, torch.tensor([0.25])).tolist() == [[[1.5, 1.5]]]
    assert flow_matching_losses(torch.tensor([[[2.0, -2.0]]]), noise, data).tolist() == [0]
    assert flow_matching_losses(torch.tensor([[[0.0, 1.0]]]), noise, data).tolist() == [4 + 9]  # summed over the row


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    times = torch.tensor([0.0, 0.3, 0.8, 1.0]).double()

    def losses(matrix: Tensor, noise: Tensor, data: Tensor) -> Tensor:
        return flow_matching_losses((linear_path(noise, data, times) @ matrix).tanh(), noise, data)

    matrix, noise, data = (torch.randn(*shape).double().requires_grad_() for shape in ((3, 3), (4, 3), (4, 3)))
    assert torch.autograd.gradcheck(losses, (matrix, noise, data))
    assert torch.autograd.gradcheck(normal_log_probs, data)


def test_the_divergence_is_the_trace_of_the_jacobian() -> None:
    torch.manual_seed(0)
    field = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    points = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():  # as in an evaluation
        vectors, divergences = with_divergences(field, points)
    torch.testing.assert_close(vectors, field(points).detach())
    assert not vectors.requires_grad and not divergences.requires_grad
    for point, divergence in zip(points, divergences, strict=True):
        jacobian = torch.autograd.functional.jacobian(field, point)
        assert isinstance(jacobian, Tensor)
        torch.testing.assert_close(divergence, jacobian.trace())
    size = 1e-5
    ends = [(field(points + size * axis) - field(points - size * axis)) @ axis for axis in torch.eye(3).double()]
    torch.testing.assert_close(sum(ends) / (2 * size), divergences, rtol=1e-6, atol=1e-6)


def test_the_density_of_noise() -> None:
    points = torch.randn(6, 4, dtype=torch.float64)
    expected = stats.multivariate_normal(np.zeros(4)).logpdf(points.numpy())
    np.testing.assert_allclose(normal_log_probs(points).numpy(), expected)
