"""Two moons: points, their exact density, and how far the density of a model is from it."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arctic_training import Callback, DataSource, DataSourceConfig, Evaluator, HumanInt

SIGMA = 0.1
SPACING = 0.05
"""Of the grids for integrals: half a sigma, at which the sum over a Gaussian is exact to more than 30 digits."""
BOX = ((-1.8, 2.8), (-1.3, 1.8))
"""Holds the true distribution but for 8 sigma."""
WIDE_BOX = ((-6.0, 7.0), (-6.0, 6.0))
"""Where the density of an energy model is normalized."""


def arcs(angles: Tensor) -> Tensor:
    """Returns the points of both moons without noise at ``angles`` from 0 to pi, as scikit-learn's ``make_moons`` has
    them: ``[2, n, 2]`` for ``[n]``."""
    outer = torch.stack([angles.cos(), angles.sin()], dim=1)
    return torch.stack([outer, torch.tensor([1.0, 0.5], dtype=angles.dtype) - outer])


def moons(count: int, seed: int) -> Tensor:
    """Returns points of the true distribution: float32 ``[count, 2]``."""
    generator = torch.Generator().manual_seed(seed)
    angles = math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    moon = torch.randint(2, (count,), generator=generator)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return (arcs(angles)[moon, torch.arange(count)] + SIGMA * noise).float()


def log_density(points: Tensor, nodes: int = 200) -> Tensor:
    """Returns the true log-density of ``points``, ``[n, 2]``, in nats: float64 ``[n]``.

    The integral over the angle is a Gauss-Legendre sum.
    """
    places, weights = (torch.from_numpy(one) for one in np.polynomial.legendre.leggauss(nodes))
    centers = arcs(math.pi / 2 * (places + 1)).reshape(-1, 2)
    log_weights = (weights / 4).log().repeat(2) - math.log(2 * math.pi * SIGMA**2)
    parts = [
        (log_weights - torch.cdist(part, centers).square() / (2 * SIGMA**2)).logsumexp(1)
        for part in points.double().split(10_000)
    ]
    return torch.cat(parts)


def grid(box: tuple[tuple[float, float], ...], spacing: float) -> Tensor:
    """Returns the points of a grid, row by row from the lowest one: float64 ``[rows * columns, 2]``."""
    x, y = (torch.arange(round((high - low) / spacing) + 1, dtype=torch.float64) * spacing + low for low, high in box)
    return torch.cartesian_prod(y, x).flip(1)


@cache
def truth() -> tuple[Tensor, Tensor]:
    """Returns the points of the grid in `BOX` with a density above exp(-30), and its logarithm: float64 ``[n, 2]``
    and ``[n]``."""
    points = grid(BOX, SPACING)
    log_p = log_density(points)
    return points[log_p > -30], log_p[log_p > -30]


def integral(values: Tensor) -> float:
    """Returns the integral of what has ``values`` at the points of `truth`: ``[n]``."""
    return float(values.sum()) * SPACING**2


@cache
def entropy() -> float:
    """Returns the entropy of the true distribution, in nats."""
    log_p = truth()[1]
    return -integral(log_p.exp() * log_p)


def model_log_density(trainer: Any, points: Tensor) -> Tensor:
    """Returns the log-density of a trainer's model at ``points``, ``[n, 2]``, in nats: float64 ``[n]``.

    That of an energy is normalized by a sum over a grid.
    """
    rows = points.float().to(trainer.device)
    if not hasattr(trainer, "energies"):
        return trainer.log_probs(rows).double().cpu()
    wide = -trainer.energies(grid(WIDE_BOX, SPACING).float().to(trainer.device)).double()
    log_z = wide.logsumexp(0) + 2 * math.log(SPACING)
    return (-trainer.energies(rows).double() - log_z).cpu()


class MoonsConfig(DataSourceConfig):
    """Keys of the source."""

    count: HumanInt = 1_000_000
    """Points."""


class MoonsSource(DataSource):
    """Points of two moons with Gaussian noise."""

    name = "moons"
    config_type = MoonsConfig

    def load(self, config: MoonsConfig, split: str) -> Tensor:
        return moons(config.count, seed=0 if split == "train" else 1)


class MoonsEvaluator(Evaluator):
    """Measures the model's density by integrals over a grid: the divergence from the true one, and the mean negative
    log-likelihood of true points, in nats."""

    name = "moons"

    def __call__(self, trainer: Any) -> dict[str, float]:
        points, log_p = truth()
        divergence = integral(log_p.exp() * (log_p - model_log_density(trainer, points)))
        return {"kl": divergence, "nll": entropy() + divergence}


class MoonsPicture(Callback):
    """Writes ``density.png`` in the run folder: the true density, that of the model, and points of the model."""

    name = "moons_picture"

    def post_train(self, trainer: Any) -> None:
        box, spacing, pixels = ((-1.6, 2.6), (-1.2, 1.7)), 0.04, 3  # a side of each square of the grid
        points = grid(box, spacing)
        with torch.no_grad(), trainer.averaged("model"):
            densities = [log_density(points).exp(), model_log_density(trainer, points).exp()]
        drawn = trainer.sample(5_000).cpu().double()
        width, height = (round((high - low) / spacing) + 1 for low, high in box)
        edges = [edge + side * spacing / 2 for low, high in box for edge, side in ((low, -1), (high, 1))]
        counts, _ = torch.histogramdd(drawn, [width, height], range=edges)
        densities.append(counts.T.flatten() / len(drawn) / spacing**2)
        pictures = [(255 * (1 - one / 0.6).clamp(0, 1)).byte().reshape(height, width).flip(0) for one in densities]
        picture = torch.cat(pictures, dim=1).repeat_interleave(pixels, 0).repeat_interleave(pixels, 1)
        if trainer.data_rank == 0:
            Image.fromarray(picture.numpy()).save(trainer.run_dir / "density.png")
