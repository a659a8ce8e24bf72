"""Where rows come from. The base of every data source."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from arctic_training.callback.hooks import Hooked, hook
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.formats.remarks import Remarks
from arctic_training.registry import Registered


class DataSource(Registered, Hooked, ABC, kind="data_source"):
    """A subclass writes `load`. What is made of its rows is kept in a cache, whose key tells their content."""

    config_type: ClassVar[type[DataSourceConfig]] = DataSourceConfig

    def __init__(self, data_factory: Any, config: DataSourceConfig) -> None:
        """``data_factory`` is the one that asks."""
        self.data_factory = data_factory
        self.config: Any = config
        self.remarks: Remarks = {}
        """Remarks made while its rows were read."""

    def __call__(self, split: str) -> Any:
        """The rows of ``split`` ("train" or "eval"), or of the recipe's ``split`` when it names one."""
        return self.load(self.config, self.config.split or split)

    @hook("load")
    @abstractmethod
    def load(self, config: Any, split: str) -> Any:
        """A `datasets.Dataset`, or an `IterableDataset` for a stream. Raises `DataError` for what cannot be read."""

    def fingerprint(self, split: str) -> str | None:
        """What changes when the rows change, found without reading them all; None: the rows that `load` gives tell."""
        return None

    def place(self, row: int) -> str:
        """How a message names a row of what `load` gave, counting from 0."""
        return f"{self}: row {row + 1}"

    def __str__(self) -> str:
        """How a message names this source."""
        return str(getattr(self.config, "name_or_path", None) or self.name)
