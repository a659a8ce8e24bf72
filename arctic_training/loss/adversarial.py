"""Losses of two networks that train against each other, and the penalties that keep the discriminator smooth."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

AdversarialLoss = Literal["non_saturating", "hinge", "wasserstein", "least_squares"]

Discriminator = Callable[[Tensor], Tensor]
"""Rows ``[n, ...]`` to scores ``[n]`` or ``[n, 1]``: high for what looks real."""


def discriminator_losses(kind: AdversarialLoss, real: Tensor, fake: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The discriminator's loss on ``n`` scores of real rows and ``n`` of generated ones, ``[n]``.

    - non_saturating: softplus(-real) + softplus(fake), Goodfellow et al. 2014 (arXiv 1406.2661); real rows count as
      real with probability 1 - ``label_smoothing`` only (one-sided: Salimans et al. 2016, arXiv 1606.03498).
    - least_squares: ((real - 1)^2 + fake^2) / 2, Mao et al. 2016 (arXiv 1611.04076), equation 9; smoothed alike.
    - hinge: max(0, 1 - real) + max(0, 1 + fake), Lim and Ye 2017 (arXiv 1705.02894).
    - wasserstein: fake - real, Arjovsky et al. 2017 (arXiv 1701.07875); a penalty must bound its slope.
    """
    real, fake = real.reshape(-1), fake.reshape(-1)
    target = 1 - label_smoothing
    if kind == "non_saturating":
        return target * F.softplus(-real) + (1 - target) * F.softplus(real) + F.softplus(fake)
    if kind == "least_squares":
        return ((real - target).square() + fake.square()) / 2
    if kind == "hinge":
        return F.relu(1 - real) + F.relu(1 + fake)
    return fake - real


def generator_losses(kind: AdversarialLoss, fake: Tensor) -> Tensor:
    """The generator's loss on ``n`` scores of what it made, ``[n]``: softplus(-fake), (fake - 1)^2 / 2, or -fake."""
    fake = fake.reshape(-1)
    if kind == "non_saturating":
        return F.softplus(-fake)
    if kind == "least_squares":
        return (fake - 1).square() / 2
    return -fake


def r1_penalties(discriminator: Discriminator, real: Tensor) -> Tensor:
    """Half the squared slope of the discriminator at every real row, ``[n]``.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 9 without its weight. Differentiable in its weights.
    """
    return _slopes(discriminator, real).square().sum(-1) / 2


def gradient_penalties(discriminator: Discriminator, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """(slope - 1)^2 of the discriminator at ``mix * real + (1 - mix) * fake``, ``[n]``; ``mix`` is ``[n]`` in [0, 1].

    Gulrajani et al. 2017 (arXiv 1704.00028), equation 3 without its weight. Differentiable in its weights.
    """
    mix = mix.reshape(-1, *[1] * (real.dim() - 1)).to(real.dtype)
    # not vector_norm: its second derivative is NaN where the slope is 0
    length = (_slopes(discriminator, mix * real + (1 - mix) * fake).square().sum(-1) + 1e-12).sqrt()
    return (length - 1).square()


def _slopes(discriminator: Discriminator, rows: Tensor) -> Tensor:
    """The gradient of every row's own score in that row, ``[n, -1]``."""
    rows = rows.detach().requires_grad_()
    with torch.enable_grad():
        # a discriminator that scores rows one by one: the gradient of the sum is each row's own
        (slopes,) = torch.autograd.grad(discriminator(rows).sum(), rows, create_graph=True)
    return slopes.flatten(1)
