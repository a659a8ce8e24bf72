"""Losses of generative adversarial networks, and gradient penalties that keep the discriminator smooth."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

AdversarialLoss = Literal["non_saturating", "hinge", "wasserstein", "least_squares"]

Discriminator = Callable[[Tensor], Tensor]
"""Maps rows ``[n, ...]`` to scores ``[n]`` or ``[n, 1]``, high for what looks real; all of one floating dtype."""


def discriminator_losses(kind: AdversarialLoss, real: Tensor, fake: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns the discriminator's losses ``[n]`` on the scores ``real`` and ``fake`` of n real and n generated rows.

    Scores are ``[n]`` or ``[n, 1]`` of one floating dtype, which is that of the losses.

    - non_saturating: softplus(-real) + softplus(fake), Goodfellow et al. 2014 (arXiv 1406.2661); real rows count as
      real with probability 1 - ``label_smoothing`` only (one-sided: Salimans et al. 2016, arXiv 1606.03498).
    - least_squares: ((real - 1)^2 + fake^2) / 2, Mao et al. 2016 (arXiv 1611.04076), equation 9; smoothed alike.
    - hinge: max(0, 1 - real) + max(0, 1 + fake), Lim and Ye 2017 (arXiv 1705.02894).
    - wasserstein: fake - real, Arjovsky et al. 2017 (arXiv 1701.07875); a penalty must bound its slope.
    """
    real, fake = real.reshape(-1), fake.reshape(-1)
    real_label = 1 - label_smoothing
    if kind == "non_saturating":
        return real_label * F.softplus(-real) + (1 - real_label) * F.softplus(real) + F.softplus(fake)
    if kind == "least_squares":
        return ((real - real_label).square() + fake.square()) / 2
    if kind == "hinge":
        return F.relu(1 - real) + F.relu(1 + fake)
    return fake - real


def generator_losses(kind: AdversarialLoss, fake: Tensor) -> Tensor:
    """Returns the generator's losses ``[n]`` on the scores ``fake`` of its rows, ``[n]`` or ``[n, 1]``.

    softplus(-fake) for non_saturating, (fake - 1)^2 / 2 for least_squares, -fake for hinge and wasserstein; sources as
    in `discriminator_losses`.
    """
    fake = fake.reshape(-1)
    if kind == "non_saturating":
        return F.softplus(-fake)
    if kind == "least_squares":
        return (fake - 1).square() / 2
    return -fake


def r1_penalties(discriminator: Discriminator, real: Tensor) -> Tensor:
    """Returns half the squared norm of the discriminator's gradient at every row of ``real``: ``[n]``.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 9 without its weight. Differentiable in its weights.
    """
    return _input_gradients(discriminator, real).square().sum(-1) / 2


def gradient_penalties(discriminator: Discriminator, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Returns (norm - 1)^2 of the discriminator's gradient at ``mix * real + (1 - mix) * fake``: ``[n]``.

    ``real`` and ``fake`` are ``[n, ...]`` of one floating dtype, ``mix`` is ``[n]`` in [0, 1].

    Gulrajani et al. 2017 (arXiv 1704.00028), equation 3 without its weight. Differentiable in its weights.
    """
    mix = mix.reshape(-1, *[1] * (real.dim() - 1)).to(real.dtype)
    # not vector_norm: its second derivative is NaN where the gradient is 0
    norm = (_input_gradients(discriminator, mix * real + (1 - mix) * fake).square().sum(-1) + 1e-12).sqrt()
    return (norm - 1).square()


def _input_gradients(discriminator: Discriminator, rows: Tensor) -> Tensor:
    """Returns the gradient of every row's score with respect to that row, flattened: ``[n, width]``."""
    rows = rows.detach().requires_grad_()
    with torch.enable_grad():
        # a discriminator that scores rows one by one: the gradient of the sum is each row's own
        (gradients,) = torch.autograd.grad(discriminator(rows).sum(), rows, create_graph=True)
    return gradients.flatten(1)
