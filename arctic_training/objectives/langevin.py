"""Langevin dynamics: chains of samples of a density that is proportional to exp(-energy)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from arctic_training.data.batching.noise import normal, uniform
from arctic_training.loss.energy import Energy


class Chains(NamedTuple):
    """Rows at which chains have ended."""

    rows: Tensor
    """float32 ``[n, ...]``, without a gradient."""
    accepted: Tensor
    """The share of each chain's steps that was accepted, float32 ``[n]``; 1 without a Metropolis correction."""


@dataclass(frozen=True)
class Langevin:
    """Steps x' = x - step_size / 2 grad E(x) + noise_scale n, where n is standard normal.

    With the default noise, sqrt(step_size), and small steps the chain samples exp(-E) (unadjusted Langevin algorithm,
    Roberts and Tweedie 1996); with less it samples something like exp(-E step_size / noise_scale^2), which is sharper.
    With ``metropolis`` a step is accepted with probability min(1, exp(E(x) - E(x')) q(x | x') / q(x' | x)), q being the
    normal density of a step, and the chain samples exp(-E) exactly whatever the size of steps and noise (MALA).
    """

    steps: int
    step_size: float
    noise_scale: float | None = None
    """None: sqrt(step_size)."""
    max_gradient: float = 0.0
    """A gradient of a larger norm is scaled down to this one; 0: none is. With ``metropolis`` the chain stays exact."""
    metropolis: bool = False

    def __call__(self, energy: Energy, rows: Tensor, draw: Tensor, *, seed: int, stream: int) -> Chains:
        """Returns the ends of chains that start at ``rows``, float32 ``[n, ...]``.

        The noise of a chain is a function of its number in ``draw``, int64 ``[n]``, of ``seed`` and of the step, whose
        two streams are ``stream`` + 2 x step and the next. Nothing is stored in the weights of ``energy``, which should
        not require gradients.
        """
        shape, points = rows.shape, rows.detach().flatten(1)
        scale = math.sqrt(self.step_size) if self.noise_scale is None else self.noise_scale
        accepted = points.new_zeros(len(points))
        energies, drift = self._drift(energy, points, shape)
        for step in range(self.steps):
            if step and not self.metropolis:
                _, drift = self._drift(energy, points, shape)
            noise = normal(draw, points.shape[1], seed=seed, stream=stream + 2 * step)
            ends = points + drift + scale * noise
            if not self.metropolis:
                points = ends
                continue
            end_energies, end_drift = self._drift(energy, ends, shape)
            back = (points - ends - end_drift) / scale
            log_ratio = energies - end_energies + (noise.square() - back.square()).sum(1) / 2
            chance = uniform(draw, (), seed=seed, stream=stream + 2 * step + 1)
            accept = chance.log() < log_ratio  # not where an energy is NaN
            accepted = accepted + accept / self.steps
            energies = torch.where(accept, end_energies, energies)
            points = torch.where(accept[:, None], ends, points)
            drift = torch.where(accept[:, None], end_drift, drift)
        return Chains(points.reshape(shape), accepted if self.metropolis else torch.ones_like(accepted))

    def _drift(self, energy: Energy, points: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Returns the energies ``[n]`` and the mean changes of a step ``[n, D]`` at ``points`` ``[n, D]``."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            energies = energy(points.reshape(shape))
            (gradients,) = torch.autograd.grad(energies.sum(), points)
        if self.max_gradient:
            norms = gradients.norm(dim=1, keepdim=True)
            gradients = gradients * (self.max_gradient / norms.clamp(min=self.max_gradient))
        return energies.detach(), -self.step_size / 2 * gradients
