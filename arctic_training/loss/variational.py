"""The evidence lower bound of variational autoencoders: its two terms, free bits, the weight of the divergence, and the
importance-weighted bound.

The posterior of a row is a Gaussian with a diagonal covariance, the prior a standard normal distribution.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from arctic_training.loss.ramp import sigmoid_ramp

KLAnnealing = Literal["none", "linear", "sigmoid", "cyclical"]

Reconstruction = Literal["bernoulli", "mse", "mae"]

_CYCLES = 4
"""Cycles of `kl_weight`, in each of which the weight rises during the first half, as in the experiments of Fu et al."""


def kl_weight(annealing: KLAnnealing, step: int, *, steps: int, beta: float) -> float:
    """Returns the weight of the divergence: 0 at step 0, and ``beta`` from step ``steps`` on, both exactly. ``none`` is
    ``beta`` at every step, and so is any annealing of 0 steps.

    In between it rises along a line (Bowman et al. 2016, arXiv 1511.06349), along a sigmoid, or four times along a
    line: in each fourth of the steps it rises from 0 to ``beta`` in the first half and stays there in the second (Fu et
    al. 2019, arXiv 1903.10145). Raises ValueError for a negative step or number of steps.
    """
    if step < 0 or steps < 0:
        raise ValueError(f"step {step} of {steps} steps: expected numbers from 0 on")
    if annealing == "none" or step >= steps:
        return beta
    place = step / steps
    if annealing == "sigmoid":
        place = sigmoid_ramp(place)
    elif annealing == "cyclical":
        place = min(2 * math.modf(_CYCLES * place)[0], 1.0)
    return beta * place


def kl_divergences(means: Tensor, log_variances: Tensor) -> Tensor:
    """Returns KL(posterior | prior) of every latent, ``[...]`` as ``means`` and ``log_variances``, floating, in nats.

    (mean^2 + variance - 1 - log variance) / 2: Kingma and Welling 2014 (arXiv 1312.6114), appendix B.
    """
    return (means.square() + torch.expm1(log_variances) - log_variances) / 2


def free_bits(parts: Tensor, means: Tensor, minimum: float) -> Tensor:
    """Returns a micro-batch's part of the sum over latents of max(mean divergence, ``minimum``): a scalar in nats.

    ``means`` ``[L]`` are the mean divergences of the latents over all rows of the step, without a gradient, and
    ``parts`` ``[L]``, floating, those of this micro-batch: sums over its rows, scaled so that their mean over all
    micro-batches is ``means``. The divergence of a latent below ``minimum`` has no gradient: Kingma et al. 2016
    (arXiv 1606.04934), appendix C.8, with one latent in each group.
    """
    return torch.where(means > minimum, parts, minimum).sum()


def reconstruction_losses(kind: Reconstruction, outputs: Tensor, rows: Tensor) -> Tensor:
    """Returns the loss of every row, a sum over its numbers: ``[N]``, in the dtype of ``outputs``.

    ``outputs`` are the decoder's and ``rows`` the data, both ``[N, ...]`` of a floating dtype.

    - bernoulli: -log p in nats, ``outputs`` being logits. Rows between 0 and 1 are mean values, of which it is the
      cross-entropy.
    - mse: squared differences, which is -log p of a Gaussian of variance 1/2, less log(pi) / 2 for each number.
    - mae: absolute differences, which is -log p of a Laplace distribution of scale 1, less log(2) for each number.
    """
    if kind == "bernoulli":
        losses = F.binary_cross_entropy_with_logits(outputs, rows, reduction="none")
    else:
        losses = outputs - rows
        losses = losses.square() if kind == "mse" else losses.abs()
    return losses.flatten(1).sum(1)


def log_importance_weights(reconstruction: Tensor, noise: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """Returns log p(x, z) - log q(z | x) of K draws of each row's latents: ``[N, K]``, in nats.

    ``reconstruction`` ``[N, K]`` is -log p(x | z), ``noise`` ``[N, K, L]`` is standard normal, and z is mean +
    deviation x noise, with ``means`` and ``log_variances`` ``[N, L]``; all of one floating dtype.
    """
    latents = draw_latents(means[:, None], log_variances[:, None], noise)
    ratios = noise.square() - latents.square() + log_variances[:, None]
    return ratios.sum(-1) / 2 - reconstruction


def importance_weighted_bounds(log_weights: Tensor) -> Tensor:
    """Returns the bound on -log p(x) of every row, float64 ``[N]`` in nats, by ``log_weights`` ``[N, K]``, floating.

    -log of the mean weight: Burda et al. 2016 (arXiv 1509.00519), equation 8. It is the lower the more draws there are.
    """
    return math.log(log_weights.shape[1]) - log_weights.double().logsumexp(1)


def draw_latents(means: Tensor, log_variances: Tensor, noise: Tensor) -> Tensor:
    """Returns latents of the posterior, ``[...]``, with a gradient: mean + deviation x ``noise``, all ``[...]``."""
    return means + torch.exp(log_variances / 2) * noise
