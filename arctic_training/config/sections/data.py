"""The sections of the data and of their sources: the keys that all of them have."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.component import AnyComponent, each, parse_component
from arctic_training.config.sections.types import HumanFloat, HumanInt


class DataConfig(ComponentConfig):
    """Keys of the data that every data factory has."""

    seed: int = Field(default=42, ge=0)
    """Seed of the order of the rows, and of every random choice among them."""
    dl_num_workers: Annotated[int, RESUME_SAFE] = Field(default=2, ge=0)
    """Processes of each rank that read and collate batches; 0: the rank itself does."""
    drop_last: bool = False
    """Drop the rows that do not fill a last global batch; else they form a smaller one."""

    @property
    def evaluates(self) -> bool:
        """Returns whether there may be data to evaluate on."""
        return True

    @property
    def evaluation_sets(self) -> list[str]:
        """Returns the names of all evaluation sets that there may be."""
        return ["eval"]

    @property
    def endless(self) -> bool:
        """Returns whether the training data have no end, so that the recipe must give the number of steps."""
        return False


class DataSourceConfig(ComponentConfig):
    """One source of rows. At most one of ``sample_ratio``, ``sample_count`` and ``weight`` sets their number."""

    split: str = ""
    """Part of the source (default: ``train``; for evaluation ``eval``, which the source may know by another name). A
    slice may follow: ``train[:1000]``, ``train[90%:]``."""
    sample_ratio: HumanFloat | None = Field(default=None, gt=0)
    """Share of the rows to take, sampled at random; above 1 rows are repeated."""
    sample_count: HumanInt | None = Field(default=None, gt=0)
    """Number of rows to take, sampled at random; rows are repeated when the source has fewer."""
    weight: HumanFloat | None = Field(default=None, gt=0)
    """Share of this source in the mixture, relative to the weights of the others. As many rows are taken as possible
    without repeating any. All sources have a weight, or none has."""
    sample_seed: int = Field(default=42, ge=0)
    """Seed of the sampling of rows."""
    process: bool = True
    """Whether the data factory tokenizes the rows; false for a source whose rows are tokens already."""
    transforms: Annotated[list[SerializeAsAny[ComponentConfig]], AnyComponent("row_transform")] = []
    """Row transforms, by name or section, applied to each row in their order before it is tokenized."""

    @property
    def display_name(self) -> str:
        """The name of the source in messages, and of its evaluation set in metrics."""
        return str(getattr(self, "name_or_path", None) or self.type)

    @property
    def local_size(self) -> float:
        """The bytes of the local files that its rows are in; infinite for a source of other rows."""
        return math.inf

    def check_beside(self, others: Sequence["DataSourceConfig"]) -> None:
        """Raises ValueError where it contradicts other sources of the recipe; here nothing does."""

    @field_validator("transforms", mode="before")
    @classmethod
    def _read_transforms(cls, value: object) -> list[ComponentConfig]:
        return each(value, partial(parse_component, "row_transform"))

    @model_validator(mode="after")
    def _one_amount(self) -> "DataSourceConfig":
        amounts = [name for name in ("sample_ratio", "sample_count", "weight") if getattr(self, name) is not None]
        if len(amounts) > 1:
            raise ValueError(f"{' and '.join(amounts)} both set the number of rows to take; give one of them")
        return self
