"""Writes rows that the trainer generates: images, points, other arrays."""

import math
from typing import Annotated

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
    shape: list[Annotated[HumanInt, Field(ge=1)]] = []
    """Shape in which a row is written, such as ``[8, 8]`` for 64 numbers that are an image; by default its own."""
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

    def check_recipe(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for a trainer that generates no rows."""
        if not callable(getattr(trainer, "sample", None)):
            raise RecipeError(
                f"callbacks.{self.name}: the trainer {trainer.config.type} has no method sample(count), which "
                "generates rows; remove it"
            )

    def check(self, trainer: TrainerView) -> None:
        """Raises `RecipeError` for a ``shape`` of another number of elements than a row of the data has."""
        shape, row = self.config.shape, getattr(trainer, "row_shape", None)
        if shape and row is not None and math.prod(shape) != math.prod(row):
            raise RecipeError(
                f"callbacks.{self.name}.shape: {shape} has {math.prod(shape)} numbers, and a row of the data has "
                f"{math.prod(row)}; give another shape, or remove it"
            )

    def sample(self, trainer: TrainerView) -> Samples:
        config = self.config
        return tensor_samples(self.rows(trainer), low=config.low, high=config.high, columns=config.columns)

    def rows(self, trainer: TrainerView) -> Tensor:
        """Returns the rows that the trainer generates: ``[count, ...]``, or ``[count, *shape]``."""
        rows: Tensor = getattr(trainer, "sample")(self.config.count)  # noqa: B009  a method of some trainers
        return rows.reshape(len(rows), *self.config.shape) if self.config.shape else rows
