"""The section of the data, as far as all data have one."""

from typing import Annotated

from pydantic import Field, model_validator

from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.numbers import HumanFloat, HumanInt


class DataConfig(ComponentConfig):
    seed: int = Field(default=42, ge=0)
    """Seed of the order of the rows, and of every choice among them."""
    dl_num_workers: Annotated[int, RESUME_SAFE] = Field(default=2, ge=0)
    """Processes that read and collate batches beside each training process; 0: the training process itself."""
    drop_last: bool = False
    """Leave out the rows that do not fill a last global batch; else they make a smaller one."""

    @property
    def evaluates(self) -> bool:
        """Whether there may be something to evaluate on."""
        return True

    @property
    def endless(self) -> bool:
        """Whether the training data have no end, so that the recipe must say how long to train."""
        return False


class DataSourceConfig(ComponentConfig):
    """One source of rows. At most one of ``sample_ratio``, ``sample_count`` and ``weight`` says how many of them."""

    split: str = ""
    """Which part of the source: ``train`` when left out; for evaluation ``eval``, which the source may know by another
    name. A slice may follow: ``train[:1000]``, ``train[90%:]``."""
    sample_ratio: HumanFloat | None = Field(default=None, gt=0)
    """Take this share of the rows, drawn at random; above 1 rows are repeated."""
    sample_count: HumanInt | None = Field(default=None, gt=0)
    """Take this many rows, drawn at random; more than there are: rows are repeated."""
    weight: HumanFloat | None = Field(default=None, gt=0)
    """This source's part of the mixture, relative to the weights of the others; no row is repeated, and as many are
    taken as that allows. All sources have one, or none has."""
    sample_seed: int = Field(default=42, ge=0)
    """Seed of the choice of rows."""
    process: bool = True
    """Whether the data factory makes tokens of the rows; false for a source whose rows are tokens already."""

    @model_validator(mode="after")
    def _one_amount(self) -> "DataSourceConfig":
        given = [name for name in ("sample_ratio", "sample_count", "weight") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say how many rows to take; give one of them")
        return self
