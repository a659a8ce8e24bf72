"""Diffusion models: a network that learns to denoise, and samplers that make rows of noise with it."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from arctic_training.data.batching.loader import Batch
from arctic_training.data.batching.noise import normal, uniform
from arctic_training.errors.types import DataError, ModelError, RecipeError
from arctic_training.loss import diffusion as formulas
from arctic_training.loss.targets import IGNORE_INDEX
from arctic_training.model.diffusers_factory import DiffusersFactory
from arctic_training.model.time_mlp_factory import TimeMLPFactory
from arctic_training.model.unet_factory import UNetFactory
from arctic_training.objectives.diffusion_config import DiffusionConfig
from arctic_training.objectives.tensor import TensorTrainer
from arctic_training.state import isolated_eval

_TIMESTEPS, _NOISE, _DROPPED_LABELS, _SAMPLES = range(4)
"""Streams of noise: for timesteps, for the noise of rows, for `label_dropout`, and from the last one on for the steps
of `DiffusionTrainer.sample`."""


class DiffusionTrainer(TensorTrainer):
    """Trains a network to denoise rows, and samples rows from noise by it (DDPM, DDIM).

    A batch has ``rows``, ``[N, ...]``, and ``draw``, int64 ``[N]``, from which the timestep and the noise of each row
    are derived, so that they do not depend on the split of the global batch. A network with ``num_labels`` reads
    ``labels`` too: int64 ``[N]``, -100 for none.
    """

    name = "diffusion"
    config_type = DiffusionConfig
    config: DiffusionConfig
    model_factory_type = (TimeMLPFactory, UNetFactory, DiffusersFactory)

    @functools.cached_property
    def levels(self) -> Tensor:
        """The share of a row in the variance at each timestep: float64 ``[timesteps]``."""
        config = self.config
        betas = formulas.noise_betas(
            config.noise_schedule,
            config.timesteps,
            start=config.beta_start,
            end=config.beta_end,
            offset=config.cosine_offset,
        )
        return formulas.noise_levels(betas).to(self.device)

    @property
    def num_labels(self) -> int:
        """Classes that the network can be conditioned on."""
        return int(getattr(self.model.module, "num_labels", 0))

    def targets(self, batch: Batch) -> int:
        """Returns the number of rows, those without a label included."""
        return len(batch["rows"])

    def loss(self, batch: Batch) -> Tensor:
        """Returns the micro-batch's part of the weighted mean squared error over the window: a float32 scalar."""
        config, rows, draw = self.config, batch["rows"].float(), batch["draw"]
        timesteps = formulas.draw_timesteps(
            uniform(draw, 1, seed=config.seed, stream=_TIMESTEPS)[:, 0],
            config.timesteps,
            config.timestep_sampling,
            mean=config.logit_mean,
            std=config.logit_std,
            mode_scale=config.mode_scale,
        )
        noise = normal(draw, rows[:1].numel(), seed=config.seed, stream=_NOISE).reshape(rows.shape)
        levels = self.levels[timesteps]
        weights = formulas.loss_weights(
            config.weighting,
            config.prediction,
            levels,
            gamma=config.min_snr_gamma,
            sigma_data=config.sigma_data,
        )
        output = self.predict(formulas.add_noise(rows, noise, levels), timesteps, self._labels(batch))
        targets = formulas.targets(config.prediction, rows, noise, levels)
        losses = (output - targets).square().flatten(1).mean(1) * weights
        loss: Tensor = losses.sum().float() / batch["num_items_in_batch"]
        return loss

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """Returns the network's output at rows ``[N, ...]`` of ``timesteps``, int64 ``[N]``: float32 ``[N, ...]``.

        ``labels`` are int64 ``[N]``, -100 for none, of a network that reads them, else None.
        """
        time = (timesteps / self.config.timesteps).float()
        more = () if labels is None else (labels,)
        output: Tensor = self.model(noisy.to(next(self.model.module.parameters()).dtype), time, *more)
        return output.float()

    def sample(self, count: int, labels: Tensor | None = None) -> Tensor:
        """Returns ``count`` rows, float32 ``[count, ...]``, from the same noise every time; of the averaged weights if
        the callback `ema` keeps them.

        ``labels`` are those that a network with labels is conditioned on, int64 ``[count]``, -100 for none; by default
        all classes in turn.
        """
        config, draw = self.config, torch.arange(count, device=self.device)
        shape = self.tables("rows")["data.sources"]["rows"].shape[1:]
        if not self.num_labels:
            labels = None
        elif labels is None:
            labels = draw % self.num_labels

        def noise(number: int) -> Tensor:
            numbers = normal(draw, shape.numel(), seed=config.seed, stream=_SAMPLES + number)
            return numbers.reshape(count, *shape)

        with self.averaged("model"), isolated_eval([self.model.module]):
            return formulas.sample_rows(
                lambda noisy, timestep: self._denoised(noisy, timestep, labels),
                noise,
                self.levels,
                config.sampling_steps,
                eta=1.0 if config.sampler == "ddpm" else config.eta,
            )

    def _denoised(self, noisy: Tensor, timestep: int, labels: Tensor | None) -> Tensor:
        """Returns the rows that the network, guided by ``labels``, takes ``noisy`` for."""
        config = self.config
        timesteps = torch.full((len(noisy),), timestep, device=noisy.device)
        output = self.predict(noisy, timesteps, labels)
        if labels is not None and config.guidance_scale != 1:
            without = self.predict(noisy, timesteps, torch.full_like(labels, IGNORE_INDEX))
            output = without + config.guidance_scale * (output - without)
        rows = formulas.denoised(config.prediction, output, noisy, self.levels[timesteps])
        return rows if config.clip_sample is None else rows.clamp(-config.clip_sample, config.clip_sample)

    def _labels(self, batch: Batch) -> Tensor | None:
        """Returns the labels of a batch, in training without those that `label_dropout` leaves out."""
        if not self.num_labels:
            return None
        labels: Tensor = batch["labels"]
        if not (self.config.label_dropout and self.model.module.training):
            return labels
        numbers = uniform(batch["draw"], 1, seed=self.config.seed, stream=_DROPPED_LABELS)[:, 0]
        return labels.masked_fill(numbers < self.config.label_dropout, IGNORE_INDEX)

    def check_models(self, models: Mapping[str, torch.nn.Module | None]) -> None:
        """Raises `RecipeError` for ``label_dropout`` with a network that reads no labels."""
        super().check_models(models)
        network = models["model"]
        if network is not None and self.config.label_dropout and not getattr(network, "num_labels", 0):
            raise RecipeError("label_dropout: the network reads no labels; set model.num_labels, or remove it")

    def check(self) -> None:
        """Raises `DataError` for data that are no rows of numbers, or lack a label that the network can read, and
        `ModelError` for a network that does not map them to rows of their shape."""
        super().check()
        for name, columns in self.tables(*(("rows", "labels") if self.num_labels else ("rows",))).items():
            if columns["rows"].dim() < 2:
                raise DataError(f"{name}: rows are single numbers; expected [rows, ...]")
            if self.num_labels:
                self._check_labels(name, columns["labels"])
        self._check_network()

    def _check_labels(self, name: str, labels: Tensor) -> None:
        known = labels[labels != IGNORE_INDEX]
        is_right = labels.dim() == 1 and labels.dtype == torch.int64
        if not is_right or bool(((known < 0) | (known >= self.num_labels)).any()):
            raise DataError(
                f"{name}: expected int64 labels from 0 to {self.num_labels - 1}, one for each row, -100 for none; they "
                f"are {labels.dtype} {list(labels.shape)}, up to {labels.max().item():g}"
            )

    def _check_network(self) -> None:
        row = self.tables("rows")["data.sources"]["rows"][:1].to(self.device).float()
        nothing = torch.zeros(1, dtype=torch.int64, device=self.device)
        try:
            with isolated_eval([self.model.module]):
                output = self.predict(row, nothing, nothing if self.num_labels else None)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"model: cannot be computed for rows of shape {list(row.shape[1:])}: {error}") from error
        if output.shape != row.shape:
            raise ModelError(
                f"model: rows of shape {list(row.shape[1:])} become {list(output.shape[1:])}; a network that denoises "
                "keeps their shape"
            )
