"""Flow matching along straight lines from noise to data: its loss, its times, and the divergence of its velocities."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

TimeSampling = Literal["uniform", "logit_normal", "u_shaped"]

_SHARPNESS = 4.0
"""How much more often than times in the middle `u_shaped` draws those near 0 and 1: the constant a of its source."""


def flow_times(kind: TimeSampling, uniforms: Tensor) -> Tensor:
    """Returns times between 0 (noise) and 1 (data), float64 ``[n]``: the quantiles at ``uniforms``, float64 ``[n]`` in
    (0, 1), of a distribution.

    - uniform.
    - logit_normal: the sigmoid of a standard normal number, Esser et al. 2024 (arXiv 2403.03206), equation 19 with
      m = 0 and s = 1.
    - u_shaped: of density proportional to exp(a t) + exp(a (1 - t)), a = 4, Lee et al. 2024 (arXiv 2405.20320).
    """
    if kind == "uniform":
        return uniforms
    if kind == "logit_normal":
        normals: Tensor = torch.special.ndtri(uniforms)
        return normals.sigmoid()
    return 0.5 + ((2 * uniforms - 1) * math.sinh(_SHARPNESS / 2)).asinh() / _SHARPNESS


def linear_path(noise: Tensor, data: Tensor, times: Tensor) -> Tensor:
    """Returns (1 - t) noise + t data, ``[n, ...]``, for two of that shape and ``times`` ``[n]`` of the same dtype."""
    times = times.reshape(-1, *[1] * (data.dim() - 1))
    return (1 - times) * noise + times * data


def flow_matching_losses(velocities: Tensor, noise: Tensor, data: Tensor) -> Tensor:
    """Returns the squared distance of each row of ``velocities`` from data - noise: ``[n]``, all three ``[n, ...]``.

    Lipman et al. 2022 (arXiv 2210.02747), equation 23 with a minimal sigma of 0; Liu et al. 2022 (arXiv 2209.03003),
    equation 1. The sum is over all numbers of a row.
    """
    return (velocities - (data - noise)).flatten(1).square().sum(1)


def with_divergences(field: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the vectors of ``field`` at ``points``, ``[n, D]``, and the exact divergence there, ``[n]``.

    ``field`` maps ``[m, D]`` to ``[m, D]``, row by row. It is called once, with D copies of the points, and
    differentiated once; neither result has a gradient.
    """
    count, size = points.shape
    copies = points.detach().repeat(size, 1).requires_grad_()
    axes = torch.eye(size, dtype=points.dtype, device=points.device).repeat_interleave(count, dim=0)
    with torch.enable_grad():
        vectors = field(copies)
        (gradients,) = torch.autograd.grad((vectors * axes).sum(), copies)
    return vectors[:count].detach(), (gradients * axes).sum(1).reshape(size, count).sum(0)


def normal_log_probs(points: Tensor) -> Tensor:
    """Returns the log-densities of ``points``, ``[n, D]``, under the standard normal distribution: ``[n]``, in nats."""
    return -(points.square() + math.log(2 * math.pi)).sum(1) / 2
