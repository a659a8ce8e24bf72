"""Generative adversarial networks: a generator and a discriminator, each with its own engine."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from arctic_training.config.sections.only_with import OnlyWith
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.gan import GANDataFactory
from arctic_training.data.factories.tensor import TensorDataFactory
from arctic_training.engine.config import zero_stage
from arctic_training.loss.adversarial import (
    AdversarialLoss,
    discriminator_losses,
    generator_losses,
    gradient_penalties,
    r1_penalties,
)
from arctic_training.objectives.generative import GenerativeTrainer
from arctic_training.trainer.role import Role, frozen_parameters

_DISCRIMINATOR, _GENERATOR, _INTERPOLATION, _SAMPLES = range(4)
"""Streams of noise: for steps of the discriminator, for those of the generator, for `gradient_penalties`, and for
samples."""


class GANConfig(TrainerConfig):
    """Keys of the trainer `gan`."""

    loss: AdversarialLoss = "non_saturating"
    """non_saturating, hinge, wasserstein or least_squares."""
    d_steps: int | None = Field(default=None, ge=1)
    """Steps of the discriminator before each step of the generator; by default 1, and 5 for wasserstein."""
    gp_weight: HumanFloat | None = Field(default=None, ge=0)
    """Weight of the penalty on gradients of a norm other than 1 between real and generated rows; by default 0, and 10
    for wasserstein."""
    r1_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of half the squared gradient norm at real rows."""
    label_smoothing: Annotated[HumanFloat, OnlyWith("loss", "non_saturating", "least_squares")] = Field(
        default=0.0, ge=0, lt=1
    )
    """How far the label of real rows is below 1."""
    latent_size: HumanInt = Field(default=64, ge=1)
    """Length of the generator's input: normal random numbers."""

    @property
    def discriminator_steps(self) -> int:
        """``d_steps``, or its default."""
        return self.d_steps or (5 if self.loss == "wasserstein" else 1)

    @property
    def gradient_penalty_weight(self) -> float:
        """``gp_weight``, or its default."""
        if self.gp_weight is not None:
            return self.gp_weight
        return 10.0 if self.loss == "wasserstein" else 0.0

    @model_validator(mode="after")
    def _check_combination(self) -> "GANConfig":
        if (self.r1_weight or self.gradient_penalty_weight) and zero_stage(self.deepspeed, 1) == 3:
            raise ValueError(
                "r1_weight and gp_weight differentiate a gradient, which ZeRO stage 3 does not support: set stage 0, 1 "
                "or 2 in deepspeed.zero_optimization, or both weights to 0"
            )
        return self


class GANTrainer(GenerativeTrainer):
    """Trains a generator, the role ``model``, against a discriminator.

    A batch has ``rows``, ``[N, ...]``, which are dealt to the steps of the discriminator in turn, and ``draw``, int64
    ``[N]``, from which the noise is derived, so that neither depends on the split of the global batch.
    """

    name = "gan"
    config_type = GANConfig
    config: GANConfig
    data_factory_type = (GANDataFactory, TensorDataFactory)
    eval_metrics = ()
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model"),
        Role(
            "discriminator",
            steps_per_update_key="discriminator_steps",
            description="The network that distinguishes real rows from generated ones.",
        ),
    )

    def check(self) -> None:
        """Raises `ModelError` for networks that do not fit the rows."""
        super().check()
        discriminator = self.engines["discriminator"]
        self.check_output(
            lambda rows: self.generate_rows(torch.zeros(1, dtype=torch.int64, device=self.device)),
            inputs=f"{self.config.latent_size} latents",
        )
        self.check_output(
            lambda rows: discriminator(self.cast(rows, "discriminator")).reshape(1, -1), [1], key="discriminator"
        )

    def targets(self, batch: Batch) -> int:
        """Returns the number of rows in each step."""
        return len(batch["rows"]) // self.config.discriminator_steps

    def step(self, batch: Batch) -> None:
        if self.window.index == 0:
            for number in range(self.config.discriminator_steps):
                for one in self.window.iterate():
                    self.update("discriminator", self.discriminator_loss(one, number))
        super().step(batch)

    def discriminator_loss(self, batch: Batch, number: int) -> Tensor:
        """Returns the discriminator's loss on the rows of its step ``number``, with penalties: a float32 scalar."""
        config, engine = self.config, self.engines["discriminator"]
        real, draw = self._share(batch["rows"], number), self._share(batch["draw"], number)
        real = self.cast(real, "discriminator")
        with torch.no_grad():
            fake = self.model(self._latents(draw, _DISCRIMINATOR)).to(real.dtype)
        losses = discriminator_losses(config.loss, engine(real), engine(fake), config.label_smoothing)
        # a penalty is differentiated twice, which only the plain module can be
        if config.r1_weight:
            penalties = r1_penalties(engine.module, real)
            self.record("penalty/r1", _mean(penalties, batch))
            losses = losses + config.r1_weight * penalties
        if weight := config.gradient_penalty_weight:
            mix = self.uniform(draw, stream=_INTERPOLATION)
            penalties = gradient_penalties(engine.module, real, fake, mix)
            self.record("penalty/gradient", _mean(penalties, batch))
            losses = losses + weight * penalties
        return _mean(losses, batch)

    def loss(self, batch: Batch) -> Tensor:
        """Returns the loss of the generator: a float32 scalar."""
        draw = self._share(batch["draw"], 0)
        with frozen_parameters(self.engines["discriminator"]) as discriminator:
            fake = self.model(self._latents(draw, _GENERATOR))
            losses = generator_losses(self.config.loss, discriminator(self.cast(fake, "discriminator")))
        return _mean(losses, batch)

    def generate_rows(self, draw: Tensor) -> Tensor:
        rows: Tensor = self.model(self._latents(draw, _SAMPLES))
        return rows

    def _share(self, column: Tensor, number: int) -> Tensor:
        """Returns the rows of step ``number``; all steps get equally many."""
        steps = self.config.discriminator_steps
        return column[number : len(column) // steps * steps : steps]

    def _latents(self, draw: Tensor, stream: int) -> Tensor:
        return self.cast(self.normal(draw, self.config.latent_size, stream=stream))


def _mean(values: Tensor, batch: Batch) -> Tensor:
    """Returns a micro-batch's part of the mean over its window."""
    share: float = batch["num_items_in_batch"]
    return values.float().sum() / share
