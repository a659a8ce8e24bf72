"""Losses of energies: score matching against closed forms and finite differences, contrastive ones by hand."""

import pytest
import torch
from torch import Tensor, nn

from arctic_training.loss.energy import (
    contrastive_divergence_losses,
    denoising_losses,
    score_matching_losses,
    unit_directions,
)


def network(size: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def rows(count: int = 4, size: int = 3) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1)).double()


def test_a_gaussian_has_its_closed_form() -> None:
    """Of the energy (x - m)^2 / 2v the score is (m - x) / v and the trace -D / v."""
    points, mean, variance = rows(), 0.7, 2.5
    losses = score_matching_losses(
        lambda x: (x - mean).square().sum(1) / (2 * variance), points, unit_directions(points)
    )
    torch.testing.assert_close(losses, ((points - mean) / variance).square().sum(1) / 2 - 3 / variance)


def test_it_is_smallest_at_the_parameters_of_the_data() -> None:
    """For Gaussians the estimate is mean and variance of the data, as by maximum likelihood (Hyvarinen 2005)."""
    points = 0.5 + 1.5 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(2)).double()
    mean = points.mean().clone().requires_grad_()
    log_variance = points.var(correction=0).log().clone().requires_grad_()
    energy = lambda x: ((x - mean).square() / (2 * log_variance.exp())).sum(1)  # noqa: E731
    loss = score_matching_losses(energy, points, unit_directions(points)).mean()
    for gradient in torch.autograd.grad(loss, [mean, log_variance]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)


def test_the_trace_is_that_of_finite_differences() -> None:
    energy, points, size = network(), rows(), 1e-4
    with torch.no_grad():
        losses = score_matching_losses(lambda x: energy(x)[:, 0], points, unit_directions(points))
        middle = energy(points)[:, 0]
        ahead, behind = (
            torch.stack([energy(points + sign * size * axis)[:, 0] for axis in torch.eye(3).double()])
            for sign in (1, -1)
        )
        slopes, curvatures = (ahead - behind) / (2 * size), (ahead - 2 * middle + behind) / size**2
    torch.testing.assert_close(losses.detach(), slopes.square().sum(0) / 2 - curvatures.sum(0), rtol=1e-5, atol=1e-5)


def test_directions_at_random_have_the_exact_mean() -> None:
    energy = lambda x: network()(x)[:, 0]  # noqa: E731
    points = rows(2)
    exact = score_matching_losses(energy, points, unit_directions(points))
    many = points.repeat_interleave(20_000, dim=0)
    directions = torch.randn(many.shape, generator=torch.Generator().manual_seed(3)).double()
    estimates = score_matching_losses(energy, many, [directions]).reshape(2, -1)
    error = estimates.std(1) / 20_000**0.5
    assert bool(((estimates.mean(1) - exact).abs() < 4 * error).all())
    assert bool((error < 0.02).all())


def test_denoising_by_hand_and_its_minimum() -> None:
    """Of the energy x^2 / 2 at x = 1, noise 2, sigma 1/2: the score at 2 is -2, and (1/2 (-2) + 2)^2 / 2 = 1/2."""
    energy = lambda x: x.square().sum(1) / 2  # noqa: E731
    losses = denoising_losses(energy, torch.ones(1, 1), torch.full((1, 1), 2.0), 0.5)
    assert losses.tolist() == [0.5]
    # data of variance 4 with noise of variance 1: the best variance is 5, and neither 4 nor 6
    generator = torch.Generator().manual_seed(4)
    points, noise = (torch.randn(200_000, 1, generator=generator).double() for _ in range(2))
    means = [
        denoising_losses(lambda x, v=v: x.square().sum(1) / (2 * v), 2 * points, noise, 1.0).mean().item()
        for v in (4, 5, 6)
    ]
    assert means[1] == min(means)
    assert means[1] == pytest.approx((1 - 1 / 5) / 2, abs=5e-3)


@pytest.mark.parametrize("kind", ["exact", "sliced", "denoising"])
def test_the_gradient_in_the_weights(kind: str) -> None:
    model, points, noise = network(), rows(), rows() * 0.5
    weight = model[0].weight

    def loss(w: Tensor) -> Tensor:
        energy = lambda x: torch.func.functional_call(model, {"0.weight": w}, x)[:, 0]  # noqa: E731
        if kind == "denoising":
            return denoising_losses(energy, points, noise, 0.3).sum()
        return score_matching_losses(energy, points, unit_directions(points) if kind == "exact" else [noise]).sum()

    assert torch.autograd.gradcheck(loss, weight)


def test_an_energy_without_second_derivatives_and_rows_of_any_shape() -> None:
    weight, points = torch.tensor(3.0, requires_grad=True), torch.ones(2, 2, 2)
    losses = score_matching_losses(lambda x: weight * x.flatten(1).sum(1), points, unit_directions(points))
    assert losses.tolist() == [18, 18]  # 4 x 3^2 / 2
    assert (
        score_matching_losses(lambda x: x.square().sum(1), torch.ones(0, 2), unit_directions(torch.ones(0, 2))).tolist()
        == []
    )


def test_contrastive_losses_by_hand() -> None:
    real, drawn = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
    assert contrastive_divergence_losses(real, drawn).tolist() == [-2.0, -2.5]
    assert contrastive_divergence_losses(real, drawn, 0.1).tolist() == pytest.approx([-2 + 1.0, -2.5 + 0.425])
