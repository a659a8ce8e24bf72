"""Energy-based models: networks whose density is proportional to exp(-output)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from arctic_training.data.batching.loader import Batch
from arctic_training.loss.energy import (
    contrastive_divergence_losses,
    denoising_losses,
    score_matching_losses,
    unit_directions,
)
from arctic_training.objectives.energy_config import EnergyConfig
from arctic_training.objectives.generative import GenerativeTrainer
from arctic_training.objectives.langevin import Chains, Langevin
from arctic_training.trainer.role import frozen_parameters
from arctic_training.trainer.row_buffer import RowBuffer

_REUSE, _START, _SCORE, _SAMPLES = range(4)
"""Streams of noise: which kept sample a chain starts from, where a new chain starts, for score matching, and where the
chains of samples start."""
_CHAIN, _SAMPLE_CHAIN = 2**10, 2**30
"""The first streams of the steps of chains, in training and for samples."""


class EnergyTrainer(GenerativeTrainer):
    """Trains a network whose density is proportional to exp(-output).

    A batch has ``rows``, floats ``[N, ...]``, and ``draw``, int64 ``[N]``, from which all noise is derived. The model
    maps rows to energies, ``[N]`` or ``[N, 1]``. Of ``cd`` and ``pcd`` the difference of the energies, and so the loss,
    is no measure of quality: it is near 0 where the samples resemble the data, and where chains do not move.
    """

    name = "energy"
    config_type = EnergyConfig
    config: EnergyConfig
    replay = RowBuffer(EnergyConfig.model_fields["replay_size"].default)

    def check_data(self) -> None:
        """Raises `DataError` for rows that are no floats."""
        super().check_data()
        self.require_float_rows()

    def check(self) -> None:
        """Raises `ModelError` for a network that does not map rows to energies."""
        super().check()
        self.check_output(lambda rows: self.model(self.cast(rows)).reshape(1, -1), [1])
        self.replay.capacity = self.config.replay_size
        self._ends = list[tuple[Tensor, Tensor]]()

    @property
    def eval_metrics(self) -> tuple[str, ...]:
        if self.config.method == "score_matching":
            return ()
        return ("energy/data", "energy/samples", *(("accepted",) if self.config.mala else ()))

    def step(self, batch: Batch) -> None:
        """Trains on one micro-batch. Chains of the whole window start from what was kept before it, so that they do not
        depend on how it is split; their ends are kept after it."""
        if self.window.index == 0:
            self._ends.clear()
        super().step(batch)
        if self.config.method == "pcd" and self.window.is_last_micro_batch:
            self.replay.add(*map(torch.cat, zip(*self._ends, strict=True)))

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the mean over the rows of the window: a float32 scalar."""
        rows, draw, items = batch["rows"].float(), batch["draw"], float(batch["num_items_in_batch"])
        if self.config.method == "score_matching":
            return self._score_matching_losses(rows, draw).sum() / items
        chains = self._chains(rows, draw)
        # one pass for both: at ZeRO stage 3 an engine gathers its weights for it
        real, drawn = self._energies(self.model, torch.cat([rows, chains.rows])).chunk(2)
        self.record("energy/data", real.sum() / items)
        self.record("energy/samples", drawn.sum() / items)
        if self.config.mala:
            self.record("accepted", chains.accepted.sum() / items)
        return contrastive_divergence_losses(real, drawn, self.config.energy_regularization).sum() / items

    def energies(self, rows: Tensor) -> Tensor:
        """Returns the energies of ``rows``, float32 ``[n, ...]``: float32 ``[n]``, up to a constant the negative
        log-likelihoods in nats."""
        return self._energies(self.model, rows)

    def generate_rows(self, draw: Tensor) -> Tensor:
        """Returns the ends of chains of ``sample_steps`` steps: float32 ``[n, ...]``."""
        start = self.normal(draw, self.row_shape, stream=_SAMPLES) * self.config.init_scale
        return self._run_chains(start, draw, self.config.sample_steps, _SAMPLE_CHAIN).rows

    def _chains(self, rows: Tensor, draw: Tensor) -> Chains:
        """Returns the chains of a micro-batch; in training, `step` keeps their ends."""
        start = self._starts(draw) if self.config.method == "pcd" else rows
        chains = self._run_chains(start, draw, self.config.mcmc_steps, _CHAIN)
        if torch.is_grad_enabled():
            self._ends.append((chains.rows, draw))
        return chains

    def _starts(self, draw: Tensor) -> Tensor:
        """Returns where the chains of pcd start: float32 ``[n, ...]``."""
        start, kept = self.normal(draw, self.row_shape, stream=_START) * self.config.init_scale, self.replay.rows
        if kept is None:
            return start
        reuse, place = self.uniform(draw, 2, stream=_REUSE).unbind(1)
        earlier = kept.to(draw.device)[(place * len(kept)).long().clamp(max=len(kept) - 1)]
        is_reused = (reuse < self.config.replay_share).reshape(-1, *[1] * (start.dim() - 1))
        return torch.where(is_reused, earlier, start)

    def _run_chains(self, start: Tensor, draw: Tensor, steps: int, stream: int) -> Chains:
        config = self.config
        langevin = Langevin(steps, config.step_size, config.noise_scale, config.max_gradient, config.mala)
        with frozen_parameters(self.model) as module:
            energy = lambda rows: self._energies(module, rows)  # noqa: E731
            return langevin(energy, start, draw, seed=config.seed, stream=stream)

    def _score_matching_losses(self, rows: Tensor, draw: Tensor) -> Tensor:
        kind, module = self.config.score_matching, self.model.module
        # a gradient is differentiated, which only the plain module can be
        energy = lambda points: self._energies(module, points)  # noqa: E731
        if kind == "denoising":
            return denoising_losses(
                energy, rows, self.normal(draw, rows.shape[1:], stream=_SCORE), self.config.denoising_sigma
            )
        directions = (
            unit_directions(rows) if kind == "exact" else [self.normal(draw, rows.flatten(1).shape[1], stream=_SCORE)]
        )
        return score_matching_losses(energy, rows, directions)

    def _energies(self, model: Callable[[Tensor], Tensor] | nn.Module, rows: Tensor) -> Tensor:
        energies: Tensor = model(self.cast(rows))
        return energies.float().reshape(len(rows))
