"""Losses of energy-based models, whose density is proportional to exp(-energy): contrastive ones and score matching."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]
"""Maps rows ``[n, ...]`` to energies ``[n]``, row by row; of one floating dtype."""


def contrastive_divergence_losses(real: Tensor, drawn: Tensor, regularization: float = 0.0) -> Tensor:
    """Returns energy of the data - energy of samples of the model + weight x (both squared), ``[n]`` for ``[n]`` each.

    The gradient of its mean is that of the negative log-likelihood where the samples are those of the model and have no
    gradient themselves (Hinton 2002). Squares: Du and Mordatch 2019 (arXiv 1903.08689), section 3.3.
    """
    return real - drawn + regularization * (real.square() + drawn.square())


def score_matching_losses(energy: Energy, rows: Tensor, directions: Iterable[Tensor]) -> Tensor:
    """Returns ``|s|^2 / 2`` + the sum over ``directions`` v of v . (ds/dx) v, the score s being -dE/dx: ``[n]``.

    ``rows`` are ``[n, ...]``, each of ``directions`` is ``[n, D]`` for rows of D numbers. With the D unit vectors
    (`unit_directions`) the second term is the trace: Hyvarinen 2005, equation 4. With one random vector of mean 0 and
    covariance 1 it is an estimate without bias: Song et al. 2019 (arXiv 1905.07088), equation 8. Differentiable in the
    weights.
    """
    with torch.enable_grad():
        points = rows.detach().flatten(1).requires_grad_()
        scores = _scores(energy, points, rows.shape)
        losses = scores.square().sum(1) / 2
        for direction in directions:
            product = (scores * direction).sum()
            (change,) = torch.autograd.grad(product, points, create_graph=True, materialize_grads=True)
            losses = losses + (change * direction).sum(1)
    return losses


def unit_directions(rows: Tensor) -> Iterable[Tensor]:
    """Returns the unit vectors of rows ``[n, ...]``, one after the other, each for all of them: ``[n, D]``."""
    count, size = rows.flatten(1).shape
    return (axis.expand(count, size) for axis in torch.eye(size, dtype=rows.dtype, device=rows.device))


def denoising_losses(energy: Energy, rows: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Returns ``|sigma s(x + sigma n) + n|^2 / 2`` at every row: ``[n]``, for ``rows`` and standard normal ``noise``
    ``[n, ...]``; s = -dE/dx is the score.

    It is smallest for the score of the data with that noise added: Vincent 2011, equation 9 times sigma^2.
    Differentiable in the weights.
    """
    with torch.enable_grad():
        noise = noise.flatten(1)
        points = (rows.detach().flatten(1) + sigma * noise).requires_grad_()
        return (sigma * _scores(energy, points, rows.shape) + noise).square().sum(1) / 2


def _scores(energy: Energy, points: Tensor, shape: torch.Size) -> Tensor:
    """Returns the scores at ``points`` ``[n, D]``, rows of ``shape``, with a graph."""
    (gradients,) = torch.autograd.grad(energy(points.reshape(shape)).sum(), points, create_graph=True)
    return -gradients
