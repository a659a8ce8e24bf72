"""Writes rows that the trainer generates: images, points, other arrays."""

from pydantic import Field, model_validator
from torch import Tensor

from arctic_training.callback.sampler import Sampler, SamplerConfig
from arctic_training.component import TrainerView
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.errors.types import RecipeError
from arctic_training.tracker.samples import Samples, tensor_samples


class SampleTensorsConfig(SamplerConfig):
    """Options of the callback `sample_tensors`."""

    count: HumanInt = Field(default=64, ge=1)
    """Rows that are generated."""
    columns: HumanInt = Field(default=8, ge=1)
    """Images in a row of the picture."""
    low: HumanFloat = 0.0
    """The value of a black pixel."""
    high: HumanFloat = 1.0
    """The value of a white pixel, or of a full colour."""

    @model_validator(mode="after")
    def _check_range(self) -> "SampleTensorsConfig":
        if self.low >= self.high:
            raise ValueError(f"high: {self.high:g} must be above low: {self.low:g}")
        return self


class SampleTensors(Sampler[SampleTensorsConfig]):
    """Writes rows that the trainer's method ``sample`` generates: a picture of images, a ``.npy`` file of others."""

    name = "sample_tensors"
    config_type = SampleTensorsConfig

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for a trainer that generates no rows."""
        if not callable(getattr(trainer, "sample", None)):
            raise RecipeError(
                f"callbacks.{self.name}: the trainer {trainer.config.type} has no method sample(count), which "
                "generates rows; remove it"
            )

    def sample(self, trainer: TrainerView) -> Samples:
        config = self.config
        return tensor_samples(self.rows(trainer), low=config.low, high=config.high, columns=config.columns)

    def rows(self, trainer: TrainerView) -> Tensor:
        """Returns the rows that the trainer generates: ``[count, ...]``."""
        rows: Tensor = getattr(trainer, "sample")(self.config.count)  # noqa: B009  a method of some trainers
        return rows
