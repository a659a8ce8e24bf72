"""Formulas of diffusion models: noise schedules, targets, timesteps, weights, and a step of a sampler.

A row of timestep t is ``sqrt(a) x0 + sqrt(1 - a) e`` of a row ``x0`` of the data and standard normal noise ``e``, with
the level ``a``, the product of ``1 - beta`` up to t (Ho et al. 2020, arXiv 2006.11239, equation 4).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "x0"]
NoiseSchedule = Literal["linear", "cosine", "quadratic", "sqrt"]
TimestepSampling = Literal["uniform", "logit_normal", "mode"]
Weighting = Literal["uniform", "snr", "min_snr", "edm"]

_MOST = 0.999
"""The largest beta: at 1 nothing of the row would remain."""


def noise_betas(
    schedule: NoiseSchedule, timesteps: int, *, start: float = 1e-4, end: float = 0.02, offset: float = 0.008
) -> Tensor:
    """Returns beta, the variance of the noise that each timestep adds: float64 ``[timesteps]``, at most 0.999.

    - linear: from ``start`` to ``end`` evenly (Ho et al. 2020); quadratic: their square roots evenly (Song et al. 2021,
      arXiv 2010.02502, appendix D.3). Both are of 1,000 timesteps, and are multiplied by 1000 / ``timesteps``, so that
      any number of them ends in as much noise (Nichol and Dhariwal 2021, arXiv 2102.09672).
    - cosine: the level of time u is cos^2((u + ``offset``) / (1 + ``offset``) pi / 2) (Nichol and Dhariwal 2021,
      equation 17), and sqrt: 1 - sqrt(u + 0.0001) (Li et al. 2022, arXiv 2205.14217, appendix A), each over that of
      time 0.
    """
    if schedule == "linear":
        betas = torch.linspace(start, end, timesteps, dtype=torch.float64) * (1000 / timesteps)
    elif schedule == "quadratic":
        roots = torch.linspace(math.sqrt(start), math.sqrt(end), timesteps, dtype=torch.float64)
        betas = roots.square() * (1000 / timesteps)
    else:
        times = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        if schedule == "cosine":
            levels = ((times + offset) / (1 + offset) * math.pi / 2).cos().square()
        else:
            levels = 1 - (times + 1e-4).sqrt()
        betas = 1 - levels[1:] / levels[:-1]
    return betas.clamp(max=_MOST)


def noise_levels(betas: Tensor) -> Tensor:
    """Returns the level of each timestep, float64 ``[timesteps]``: the share of the row in its variance."""
    return (1 - betas.double()).cumprod(0)


def draw_timesteps(
    uniforms: Tensor,
    timesteps: int,
    sampling: TimestepSampling = "uniform",
    *,
    mean: float = 0.0,
    std: float = 1.0,
    mode_scale: float = 1.29,
) -> Tensor:
    """Returns timesteps, int64 ``[N]`` from 0, one of each of ``uniforms``, float64 ``[N]`` in (0, 1).

    They are floor(timesteps u) with, for a uniform U (Esser et al. 2024, arXiv 2403.03206, section 3.1):

    - uniform: u = U;
    - logit_normal: u = sigmoid(``mean`` + ``std`` z), z normal (equation 19);
    - mode: u = 1 - U - ``mode_scale`` (cos^2(pi U / 2) - 1 + U) (equation 20), monotonic for scales from -1 to
      2 / (pi - 2).
    """
    u = uniforms
    if sampling == "logit_normal":
        u = torch.sigmoid(mean + std * torch.special.ndtri(uniforms))
    elif sampling == "mode":
        u = 1 - u - mode_scale * ((u * (math.pi / 2)).cos().square() - 1 + u)
    return (u * timesteps).long().clamp(0, timesteps - 1)


def add_noise(rows: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Returns sqrt(a) rows + sqrt(1 - a) noise: ``[N, ...]``, in the dtype of ``rows``; ``levels`` a are ``[N]``."""
    signal, scale = _roots(levels, rows)
    return signal * rows + scale * noise


def diffusion_targets(prediction: Prediction, rows: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Returns what the network has to predict: ``[N, ...]``; the arguments are those of `add_noise`.

    epsilon: the noise; x0: the rows; v: sqrt(a) noise - sqrt(1 - a) rows (Salimans and Ho 2022, arXiv 2202.00512,
    section 4).
    """
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return rows
    signal, scale = _roots(levels, rows)
    return signal * noise - scale * rows


def denoised_rows(prediction: Prediction, output: Tensor, noisy: Tensor, levels: Tensor) -> Tensor:
    """Returns the row x0 that a network's ``output`` at ``noisy`` means: both ``[N, ...]``, ``levels`` ``[N]``."""
    if prediction == "x0":
        return output
    signal, scale = _roots(levels, noisy)
    return (noisy - scale * output) / signal if prediction == "epsilon" else signal * noisy - scale * output


def diffusion_loss_weights(
    weighting: Weighting, prediction: Prediction, levels: Tensor, *, gamma: float = 5.0, sigma_data: float = 0.5
) -> Tensor:
    """Returns the weight of a row's squared error of what is predicted: float64 ``[N]`` for ``levels`` ``[N]``.

    With the ratio of signal and noise r = a / (1 - a), the squared error of x0 is that of epsilon over r, and that of v
    over r + 1. Each weighting but ``uniform`` is one of the error of x0, whatever is predicted:

    - uniform: 1 for the error of what is predicted (Ho et al. 2020, equation 14);
    - snr: r, so that epsilon has 1 and v r / (r + 1);
    - min_snr: min(r, ``gamma``), so that epsilon has min(r, gamma) / r and v min(r, gamma) / (r + 1) (Hang et al. 2023,
      arXiv 2303.09556, section 3.4);
    - edm: (s^2 + ``sigma_data``^2) / (s ``sigma_data``)^2 with s^2 = 1 / r (Karras et al. 2022, arXiv 2206.00364,
      table 1).
    """
    ratio = levels.double() / (1 - levels.double())
    if weighting == "uniform":
        return torch.ones_like(ratio)
    if weighting == "edm":
        weights = ratio + 1 / sigma_data**2
    else:
        weights = ratio if weighting == "snr" else ratio.clamp(max=gamma)
    divisors = {"x0": torch.ones_like(ratio), "epsilon": ratio, "v": ratio + 1}
    return weights / divisors[prediction]


def sampling_timesteps(timesteps: int, steps: int) -> list[int]:
    """Returns ``steps`` timesteps from the last one down, evenly (Lin et al. 2024, arXiv 2305.08891, section 3.3)."""
    return [round(timesteps * (steps - n) / steps) - 1 for n in range(steps)]


def reverse_step(rows: Tensor, noisy: Tensor, level: float, next_level: float, eta: float, noise: Tensor) -> Tensor:
    """Returns rows of a level nearer to the data, ``[N, ...]``: a step of a sampler.

    ``noisy`` are rows of ``level``, ``rows`` what x0 is predicted to be of them, ``noise`` is standard normal, all
    ``[N, ...]``; at ``next_level`` 1 the step ends. Song et al. 2021 (arXiv 2010.02502), equations 12 and 16: ``eta`` 0
    is DDIM, and 1 is DDPM with the variance of the posterior (Ho et al. 2020, equation 7).
    """
    variance = eta**2 * (1 - next_level) / (1 - level) * (1 - level / next_level)
    predicted_noise = (noisy - math.sqrt(level) * rows) / math.sqrt(1 - level)
    mean = math.sqrt(next_level) * rows + math.sqrt(max(1 - next_level - variance, 0)) * predicted_noise
    return mean + math.sqrt(variance) * noise


def sample_diffusion(
    predict: Callable[[Tensor, int], Tensor],
    noise: Callable[[int], Tensor],
    levels: Tensor,
    steps: int,
    *,
    eta: float = 0.0,
) -> Tensor:
    """Returns rows ``[N, ...]`` of the distribution that ``predict`` has learned.

    ``predict(noisy, timestep)`` returns x0, ``[N, ...]``, of rows of a timestep, and ``noise(n)`` standard normal rows
    ``[N, ...]``: those that sampling begins with for 0, and then those of each step. ``levels`` are those of
    `noise_levels`, ``[timesteps]``; ``eta`` is that of `reverse_step`.
    """
    chosen = sampling_timesteps(len(levels), steps)
    values = [*levels[chosen].tolist(), 1.0]
    rows = noise(0)
    for n, timestep in enumerate(chosen):
        level, next_level = values[n], values[n + 1]
        fresh = noise(n + 1) if eta and next_level < 1 else torch.zeros_like(rows)
        rows = reverse_step(predict(rows, timestep), rows, level, next_level, eta, fresh)
    return rows


def _roots(levels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sqrt(a) and sqrt(1 - a) of ``levels``, ``[N]``, in the dtype of ``rows`` and shaped to multiply them."""
    levels = levels.double().reshape(-1, *[1] * (rows.dim() - 1))
    return levels.sqrt().to(rows.dtype), (1 - levels).sqrt().to(rows.dtype)
