"""A generator and a discriminator, trained against each other on an engine each."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor

from arctic_training.callback.ema import EMA
from arctic_training.checkpoint.deepspeed import DeepSpeedCheckpointEngine
from arctic_training.config.sections.component import TrainerComponent
from arctic_training.config.sections.model import ModelConfig
from arctic_training.config.sections.numbers import HumanFloat, HumanInt
from arctic_training.config.sections.optimizer import OptimizerConfig
from arctic_training.config.sections.scheduler import SchedulerConfig
from arctic_training.config.sections.trainer import TrainerConfig
from arctic_training.data.batching.noise import normal, uniform
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
from arctic_training.model.mlp_factory import MLPFactory
from arctic_training.optimizer.torch_factories import AdamWFactory, SGDFactory
from arctic_training.scheduler.huggingface_factory import HFSchedulerFactory
from arctic_training.state import isolated_eval
from arctic_training.tokenizer.factory import NoTokenizerFactory
from arctic_training.trainer.role import Role, frozen_parameters
from arctic_training.trainer.trainer import Trainer

_FAKES, _GENERATED, _MIXES, _SAMPLES = range(4)
"""Streams of noise: for the discriminator's step, for the generator's, between real and fake, and to look at."""


def _unwritten() -> Any:
    """A section that a recipe leaves out: its class fills it in."""
    return {}


class GANConfig(TrainerConfig):
    discriminator: Annotated[SerializeAsAny[ModelConfig], TrainerComponent("model_factory_type")] = Field(
        default_factory=_unwritten
    )
    """The network that tells real rows from generated ones."""
    discriminator_optimizer: Annotated[SerializeAsAny[OptimizerConfig], TrainerComponent("optimizer_factory_type")] = (
        Field(default_factory=_unwritten)
    )
    """Its own, with the same keys as ``optimizer``."""
    discriminator_scheduler: Annotated[SerializeAsAny[SchedulerConfig], TrainerComponent("scheduler_factory_type")] = (
        Field(default_factory=_unwritten)
    )
    """Its lengths are in updates of the discriminator: ``d_steps`` for each of the run's."""

    loss: AdversarialLoss = "non_saturating"
    """non_saturating, hinge, wasserstein or least_squares."""
    d_steps: int | None = Field(default=None, ge=1)
    """Updates of the discriminator before each of the generator's; 1 when left out, and 5 for wasserstein."""
    gp_weight: HumanFloat | None = Field(default=None, ge=0)
    """Weight of the penalty on slopes other than 1 between real and generated rows; 0 when left out, and 10 for
    wasserstein."""
    r1_weight: HumanFloat = Field(default=0.0, ge=0)
    """Weight of half the squared slope at real rows."""
    label_smoothing: HumanFloat = Field(default=0.0, ge=0, lt=1)
    """How much less than surely real a real row counts; for non_saturating and least_squares."""
    latent_size: HumanInt = Field(default=64, ge=1)
    """Normal numbers that the generator makes a row of: its input."""

    @property
    def discriminator_steps(self) -> int:
        return self.d_steps or (5 if self.loss == "wasserstein" else 1)

    @property
    def gradient_penalty_weight(self) -> float:
        return self.gp_weight if self.gp_weight is not None else 10.0 * (self.loss == "wasserstein")

    @model_validator(mode="after")
    def _fitting(self) -> "GANConfig":
        if self.label_smoothing and self.loss in ("hinge", "wasserstein"):
            raise ValueError(f"label_smoothing: the {self.loss} loss has no labels; leave it out")
        if (self.r1_weight or self.gradient_penalty_weight) and zero_stage(self.deepspeed, 1) == 3:
            raise ValueError(
                "r1_weight and gp_weight differentiate a gradient, which ZeRO stage 3 cannot: choose stage 0, 1 or 2 "
                "in deepspeed.zero_optimization, or set both weights to 0"
            )
        return self


class GANTrainer(Trainer):
    """The generator is the role ``model``. A batch has the column ``rows``, whose rows are dealt to the steps of the
    discriminator in turn, and ``draw``, which the noise is made of: so neither depends on how a batch is cut."""

    name = "gan"
    config_type = GANConfig
    data_factory_type = [GANDataFactory, TensorDataFactory]
    model_factory_type = [MLPFactory]
    checkpoint_engine_type = [DeepSpeedCheckpointEngine]
    optimizer_factory_type = [AdamWFactory, SGDFactory]
    scheduler_factory_type = [HFSchedulerFactory]
    tokenizer_factory_type = [NoTokenizerFactory]
    roles: ClassVar[tuple[Role, ...]] = (
        Role("model"),
        Role("discriminator", steps_per_update_key="discriminator_steps"),
    )

    def targets(self, batch: Any) -> int:
        steps: int = self.config.discriminator_steps
        return len(batch["rows"]) // steps

    def step(self, batch: Any) -> None:
        if self.window.index == 0:
            for turn in range(self.config.discriminator_steps):
                self.step_discriminator(turn)
        super().step(batch)

    def step_discriminator(self, turn: int) -> None:
        """One update of the discriminator on its share of the whole window."""
        engine, window = self.engines["discriminator"], self.window
        engine.train()
        for index, batch in enumerate(window.batches):
            loss = self.discriminator_loss(batch, turn)
            self.record("loss/discriminator", loss)
            engine.set_gradient_accumulation_boundary(index == window.size - 1)
            engine.backward(loss * (self.config.gradient_accumulation_steps / window.size))
            engine.step()

    def discriminator_loss(self, batch: Any, turn: int) -> Tensor:
        """On the rows that belong to its step number ``turn`` before the generator's, penalties included."""
        config, engine = self.config, self.engines["discriminator"]
        real, draw = self._dealt(batch["rows"], turn), self._dealt(batch["draw"], turn)
        real = real.to(_dtype(engine.module))
        with torch.no_grad():
            fake = self.model(self._latents(draw, _FAKES)).to(real.dtype)
        losses = discriminator_losses(config.loss, engine(real), engine(fake), config.label_smoothing)
        # a penalty is differentiated twice, which only the plain module can be
        if config.r1_weight:
            penalties = r1_penalties(engine.module, real)
            self.record("penalty/r1", _mean(penalties, batch))
            losses = losses + config.r1_weight * penalties
        if weight := config.gradient_penalty_weight:
            mix = uniform(draw, 1, seed=config.seed, stream=_MIXES)
            penalties = gradient_penalties(engine.module, real, fake, mix)
            self.record("penalty/gradient", _mean(penalties, batch))
            losses = losses + weight * penalties
        return _mean(losses, batch)

    def loss(self, batch: Any) -> Tensor:
        """The generator's."""
        draw = self._dealt(batch["draw"], 0)
        with frozen_parameters(self.engines["discriminator"]) as discriminator:
            fake = self.model(self._latents(draw, _GENERATED))
            losses = generator_losses(self.config.loss, discriminator(fake.to(_dtype(discriminator))))
        return _mean(losses, batch)

    def sample(self, count: int) -> Tensor:
        """``count`` rows to look at, the same latents every time; of the averaged generator where one is kept."""
        module = self.model.module
        averages = (part for part in self.listeners.values() if isinstance(part, EMA) and part.config.role == "model")
        latents = self._latents(torch.arange(count, device=self.device), _SAMPLES)
        with isolated_eval([module]):
            average = next(averages, None)
            made: Tensor = module(latents) if average is None else average(module, latents)
        return made

    def _dealt(self, column: Tensor, turn: int) -> Tensor:
        """What ``turn`` gets of a column: all turns get equally many rows."""
        steps: int = self.config.discriminator_steps
        return column[turn : len(column) // steps * steps : steps]

    def _latents(self, draw: Tensor, stream: int) -> Tensor:
        latents = normal(draw, self.config.latent_size, seed=self.config.seed, stream=stream)
        return latents.to(_dtype(self.model.module))


def _mean(values: Tensor, batch: Any) -> Tensor:
    """A micro-batch's part of the mean over its window."""
    share: float = batch["num_items_in_batch"]
    return values.float().sum() / share


def _dtype(module: torch.nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
