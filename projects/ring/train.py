"""Eight Gaussians on a ring: a source of points, and how well generated points match them."""

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from arctic_training import Callback, ComponentConfig, DataSource, DataSourceConfig, Evaluator, HumanInt

MODES, RADIUS, SIGMA = 8, 2.0, 0.1
_ANGLES = torch.arange(MODES) * (2 * math.pi / MODES)
CENTERS = RADIUS * torch.stack([_ANGLES.cos(), _ANGLES.sin()], dim=1)


def ring(count: int, seed: int) -> Tensor:
    """Returns points of the true distribution: float32 ``[count, 2]``."""
    generator = torch.Generator().manual_seed(seed)
    modes = torch.randint(MODES, (count,), generator=generator)
    return CENTERS[modes] + SIGMA * torch.randn(count, 2, generator=generator)


def measure(points: Tensor) -> dict[str, float]:
    """Returns which share of ``points``, ``[n, 2]``, lies within 3 sigma of a mode, how many modes have at least 5 % of
    them, the share of the smallest one, and the width of the modes in sigmas.

    The true distribution has .989, 8 modes, about .12, and a width of .974 (without the points beyond 3 sigma).
    """
    distance, nearest = torch.cdist(points, CENTERS.to(points)).min(dim=1)
    near = distance < 3 * SIGMA
    shares = torch.bincount(nearest[near], minlength=MODES) / len(points)
    spread = (distance[near].square().mean() / 2).sqrt() / SIGMA if near.any() else distance.new_zeros(())
    return {
        "share_within_3_sigma": near.double().mean().item(),
        "modes": float((shares >= 0.05).sum()),
        "smallest_mode": shares.min().item(),
        "spread": spread.item(),
    }


class RingConfig(DataSourceConfig):
    """Keys of the source."""

    count: HumanInt = 100_000
    """Points."""


class RingSource(DataSource):
    """Points on the ring."""

    name = "ring"
    config_type = RingConfig

    def load(self, config: RingConfig, split: str) -> Tensor:
        return ring(config.count, seed=0 if split == "train" else 1)


class RingEvaluatorConfig(ComponentConfig):
    """Keys of the evaluator."""

    count: HumanInt = 10_000
    """Points that are generated and measured."""


class RingEvaluator(Evaluator):
    """Measures generated points: see `measure`."""

    name = "ring"
    config_type = RingEvaluatorConfig

    def __call__(self, trainer: Any) -> dict[str, float]:
        return measure(trainer.sample(self.config.count).float().cpu())


class RingPicture(Callback):
    """Writes a picture of true and generated points side by side, ``samples.png`` in the run folder."""

    name = "ring_picture"

    def post_train(self, trainer: Any) -> None:
        both = [_density(ring(20_000, seed=1)), _density(trainer.sample(20_000).float().cpu())]
        if trainer.data_rank == 0:
            Image.fromarray(torch.cat(both, dim=1).numpy()).save(trainer.run_dir / "samples.png")


def _density(points: Tensor, pixels: int = 300, reach: float = 2.7) -> Tensor:
    """Returns the density of ``points``, ``[n, 2]``, as a grey picture, dark on white: uint8 ``[pixels, pixels]``."""
    counts, _ = torch.histogramdd(points.double(), [pixels, pixels], range=[-reach, reach, -reach, reach])
    return (255 * (1 - counts / 4).clamp(min=0)).byte().T.flip(0)
