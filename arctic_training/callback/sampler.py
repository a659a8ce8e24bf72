"""Samplers: callbacks that write what the models of a run generate, at a cadence."""

from abc import abstractmethod
from typing import ClassVar, TypeVar

from pydantic import Field

from arctic_training.callback.callback import Callback
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.types import HumanInt
from arctic_training.display.activity import activity
from arctic_training.state import isolated_eval
from arctic_training.tracker.samples import Samples


class SamplerConfig(ComponentConfig):
    """Options of every sampler."""

    every: HumanInt = Field(default=100, ge=1)
    """Steps between samples; there are samples of the last step too."""


S = TypeVar("S", bound=SamplerConfig)


class Sampler(Callback[S]):
    """Base of samplers. A subclass with a ``name`` defines `sample`; a recipe lists it among its callbacks.

    Samples are written to ``samples/<name>`` in the run folder and sent to the trackers. They leave no trace in the
    run: the models are in evaluation mode meanwhile, and the random generators are restored.
    """

    config_type: ClassVar[type[ComponentConfig]] = SamplerConfig

    @abstractmethod
    def sample(self, trainer: TrainerView) -> Samples:
        """Returns samples of the current models. It is called on every rank, without gradients; those of the main rank
        are written."""

    def post_after_update(self, trainer: TrainerView) -> None:
        """Writes samples when they are due."""
        step = trainer.progress.step
        if step % self.config.every and step != trainer.training_horizon:
            return
        with activity(f"sampling: {self.label}", aside=True):
            with isolated_eval([engine.module for engine in trainer.engines.values()]):
                samples = self.sample(trainer)
            trainer.log_samples(self.label, samples)
