"""The evidence lower bound: its terms are those of torch.distributions, and it is exact where the posterior is."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, distributions

from arctic_training.loss.variational import (
    KLAnnealing,
    Reconstruction,
    draw_latents,
    free_bits,
    importance_weighted_bounds,
    kl_divergences,
    kl_weight,
    log_importance_weights,
    reconstruction_losses,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("annealing", ["linear", "sigmoid", "cyclical"])
@pytest.mark.parametrize("steps", [1, 8, 1000])
@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_the_weight_starts_at_0_and_ends_at_beta(annealing: KLAnnealing, steps: int, beta: float) -> None:
    weights = [kl_weight(annealing, step, steps=steps, beta=beta) for step in range(steps + 3)]
    assert weights[0] == 0.0
    assert weights[steps:] == [beta] * 3
    assert min(weights) >= 0 and max(weights) <= beta
    if annealing != "cyclical":
        assert weights == sorted(weights)


def test_the_weight_in_between() -> None:
    linear, sigmoid, cyclical = (
        [kl_weight(kind, step, steps=16, beta=2.0) for step in range(17)]  # type: ignore[arg-type]
        for kind in ("linear", "sigmoid", "cyclical")
    )
    assert linear == [step / 8 for step in range(17)]
    assert sigmoid[8] == pytest.approx(1.0)
    rises = [after - before for before, after in pairwise(sigmoid)]
    assert rises[:8] == sorted(rises[:8]) and rises[8:] == pytest.approx(rises[7::-1])
    assert cyclical == [0, 1, 2, 2] * 4 + [2]


def test_without_annealing_the_weight_is_beta() -> None:
    assert {kl_weight("none", step, steps=5, beta=0.5) for step in range(9)} == {0.5}
    assert kl_weight("linear", 0, steps=0, beta=0.5) == 0.5
    with pytest.raises(ValueError, match="step -1 of 3 steps"):
        kl_weight("linear", -1, steps=3, beta=1.0)


def test_the_divergence_is_that_of_torch() -> None:
    means, log_variances = normal(50, 3), 2 * normal(50, 3, seed=1)
    posterior = distributions.Normal(means, torch.exp(log_variances / 2))
    expected = distributions.kl_divergence(posterior, distributions.Normal(torch.zeros(()), torch.ones(())))
    torch.testing.assert_close(kl_divergences(means, log_variances), expected)
    near = torch.full((1,), 1e-6)  # in float32, exp(x) - 1 - x would be 0 or below
    assert kl_divergences(torch.zeros(1), near).item() >= 0


@pytest.mark.parametrize("kind", ["bernoulli", "mse", "mae"])
def test_the_reconstruction_is_a_likelihood_summed_over_the_row(kind: Reconstruction) -> None:
    outputs, rows = normal(7, 2, 4), normal(7, 2, 4, seed=1)
    if kind == "bernoulli":
        rows = (rows > 0).double()
        log_probs = distributions.Bernoulli(logits=outputs).log_prob(rows)
    elif kind == "mse":
        log_probs = distributions.Normal(outputs, math.sqrt(0.5)).log_prob(rows) + math.log(math.pi) / 2
    else:
        log_probs = distributions.Laplace(outputs, 1.0).log_prob(rows) + math.log(2)
    expected = -log_probs.sum(dim=(1, 2))
    torch.testing.assert_close(reconstruction_losses(kind, outputs, rows), expected)


def test_the_gradients_are_finite_differences() -> None:
    means, log_variances, noise = normal(3, 2), normal(3, 2, seed=1), normal(3, 2, seed=2)
    rows = (normal(3, 2, seed=3) > 0).double()

    def bound(means: Tensor, log_variances: Tensor) -> Tensor:
        latents = draw_latents(means, log_variances, noise)
        return reconstruction_losses("bernoulli", 3 * latents, rows).sum() + kl_divergences(means, log_variances).sum()

    assert torch.autograd.gradcheck(bound, (means.requires_grad_(), log_variances.requires_grad_()))


def test_free_bits_are_a_bound_on_the_mean_of_all_micro_batches() -> None:
    """Not on each row, nor on each micro-batch: one latent is above in the mean, and below in one of the two."""
    parts = torch.tensor([[0.1, 0.9, 0.1], [0.2, 0.3, 1.5]], dtype=torch.float64, requires_grad=True)
    means = parts.detach().mean(0)
    assert means.tolist() == pytest.approx([0.15, 0.6, 0.8])
    total = torch.stack([free_bits(one, means, 0.5) for one in parts]).mean()
    assert total.item() == pytest.approx(0.5 + 0.6 + 0.8)
    total.backward()
    assert parts.grad is not None and parts.grad.tolist() == [[0, 0.5, 0.5]] * 2


def test_importance_weights_by_torch_distributions() -> None:
    means, log_variances, noise = normal(4, 2), normal(4, 2, seed=1), normal(4, 9, 2, seed=2)
    reconstruction = normal(4, 9, seed=3).square()
    posterior = distributions.Normal(means[:, None], torch.exp(log_variances / 2)[:, None])
    latents = posterior.mean + posterior.stddev * noise
    prior = distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = (prior.log_prob(latents) - posterior.log_prob(latents)).sum(-1) - reconstruction
    log_weights = log_importance_weights(reconstruction, noise, means, log_variances)
    torch.testing.assert_close(log_weights, expected)
    torch.testing.assert_close(importance_weighted_bounds(log_weights), -expected.exp().mean(1).log())
    assert (importance_weighted_bounds(log_weights) <= -log_weights.mean(1)).all()  # Jensen


def test_the_bound_of_many_unlikely_draws_is_finite() -> None:
    bounds = importance_weighted_bounds(torch.full((1, 1000), -5000.0))
    assert bounds.dtype == torch.float64 and bounds.item() == pytest.approx(5000, abs=1e-9)


def test_with_the_true_posterior_both_bounds_are_the_likelihood() -> None:
    """A linear decoder with orthogonal columns and Gaussian noise: probabilistic PCA (Tipping and Bishop 1999)."""
    columns = torch.linalg.qr(normal(5, 2)).Q * torch.tensor([1.5, 0.5], dtype=torch.float64)
    center, rows, variance = normal(5, seed=1), 2 * normal(6, 5, seed=2), 0.5
    covariance = (columns @ columns.T + variance * torch.eye(5)).numpy()
    exact = -torch.from_numpy(multivariate_normal(center.numpy(), covariance).logpdf(rows.numpy()))

    precision = 1 + columns.square().sum(0) / variance  # of the posterior, which is diagonal
    means = (rows - center) @ columns / variance / precision
    log_variances = -precision.log().expand(6, 2)
    # points at which a square has the mean that it has under a normal distribution
    noise = math.sqrt(2) * torch.cat([torch.eye(2), -torch.eye(2)]).double().expand(6, 4, 2)
    latents = draw_latents(means[:, None], log_variances[:, None], noise)
    outputs = latents @ columns.T + center
    losses = reconstruction_losses("mse", outputs.flatten(0, 1), rows.repeat_interleave(4, 0)).view(6, 4)
    constant = 5 / 2 * math.log(math.pi)
    torch.testing.assert_close(losses.mean(1) + kl_divergences(means, log_variances).sum(1) + constant, exact)
    log_weights = log_importance_weights(losses, noise, means, log_variances)
    torch.testing.assert_close(-log_weights, exact[:, None].expand(6, 4) - constant)
