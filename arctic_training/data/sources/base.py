"""The base of data sources, which load rows."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_training.callback.hooks import Hooked, hook
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.formats.remarks import Remarks
from arctic_training.data.sources.transformed import transform_rows
from arctic_training.data.transforms.base import create_transforms
from arctic_training.registry import Registered

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


class DataSource(Registered, Hooked, ABC, kind="data_source"):
    """Base of data sources; a subclass defines `load`. The cache key of samples depends on the content of the rows."""

    config_type: ClassVar[type[DataSourceConfig]] = DataSourceConfig

    def __init__(self, data_factory: Any, config: DataSourceConfig) -> None:
        """``data_factory`` is the factory that reads the source; None where there is none."""
        self.data_factory = data_factory
        self.config = config
        self.transforms = create_transforms(config.transforms)
        self.remarks: Remarks = {}
        """The remarks made while its rows were loaded."""

    def __call__(self, split: str) -> "Dataset | IterableDataset":
        """Returns the rows of ``split`` ("train" or "eval"), or of the recipe's own split, after its transforms.

        Raises `DataError`.
        """
        rows = _without_format(self.load(self.config, self.config.split or split))
        if not self.transforms:
            return rows
        return transform_rows(rows, self.transforms, getattr(self.data_factory, "cache_folder", None))

    @hook("load")
    @abstractmethod
    def load(self, config: Any, split: str) -> "Dataset | IterableDataset":
        """Returns a `datasets.Dataset`, or an `IterableDataset` for a stream. Raises `DataError`."""

    @property
    def classes(self) -> list[type]:
        """The classes whose code its rows depend on: its own and those of its transforms."""
        return [type(one) for one in (self, *self.transforms)]

    def fingerprint(self, split: str) -> str | None:
        """Returns a digest of the rows, found without loading them; None: that of the loaded rows is used."""
        return None

    def place(self, row: int) -> str:
        """Returns the name of a loaded row in messages, such as file and line; ``row`` counts from 0."""
        return f"{self}: row {row + 1}"

    def __str__(self) -> str:
        """Returns the name of this source in messages."""
        return self.config.display_name or self.name


def _without_format(rows: "Dataset | IterableDataset") -> "Dataset | IterableDataset":
    """Returns the rows of a `datasets.Dataset` as they are stored, of the columns that its format has; others as they
    are."""
    stored = getattr(rows, "format", None)
    if not isinstance(stored, dict):
        return rows
    rows = rows.with_format(None) if stored["type"] else rows
    return rows if stored["columns"] == rows.column_names else rows.select_columns(stored["columns"])
