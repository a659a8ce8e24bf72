"""Data of tensors in memory: points, pictures, tables of numbers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from arctic_training.callback.hooks import hook
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.data import DataConfig, DataSourceConfig
from arctic_training.data.batching.loader import Loader, OrderedLoader
from arctic_training.data.batching.sampler import GlobalOrder
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.config import Source, evaluation_names
from arctic_training.data.sources.passed import PassedTensorSource
from arctic_training.data.sources.tensor import SUFFIXES, TensorFileSource
from arctic_training.errors.types import DataError
from arctic_training.registry import lookup

Table = dict[str, Tensor]
"""Columns of one length: tensors ``[rows, ...]``."""


class TensorDataConfig(DataConfig):
    """The data of trainers that read tensors."""

    dl_num_workers: Annotated[int, RESUME_SAFE] = Field(default=0, ge=0, le=0)
    """Always 0: rows in memory are read faster than they are sent between processes."""
    sources: list[Source] = Field(min_length=1)
    """Training sources, whose rows are concatenated; a bare string is a file, or the name of a source."""
    eval_sources: Annotated[list[Source], RESUME_SAFE] = []
    """Evaluation sources; each is an evaluation set of its own."""

    @property
    def evaluation_sets(self) -> list[str]:
        return evaluation_names(self.eval_sources)

    @field_validator("sources", "eval_sources", mode="before")
    @classmethod
    def _name_types(cls, value: object) -> object:
        return [_typed(one) for one in (value if isinstance(value, list) else [value])]

    @field_validator("sources", "eval_sources")
    @classmethod
    def _check_no_sampling(cls, sources: list[DataSourceConfig]) -> list[DataSourceConfig]:
        for key in ("sample_ratio", "sample_count", "weight"):
            if any(getattr(source, key) is not None for source in sources):
                raise ValueError(f"{key}: all rows of tensors are used; choose rows in the source")
        return sources


def _typed(section: object) -> object:
    if isinstance(section, str):
        section = {"name_or_path": section} if Path(section).suffix in SUFFIXES else {"type": section}
    return {"type": TensorFileSource.name, **section} if isinstance(section, dict) else section


class TensorDataFactory(DataFactory[TensorDataConfig]):
    """Loads tensors ``[rows, ...]``, which become the column ``rows``, or mappings of columns.

    A batch has the rows of each column, and ``draw``, int64 ``[n]``: the number of each row among all rows that the run
    reads, from which `arctic_training.data.batching.noise` makes random numbers.
    """

    name = "tensor"
    passed_source = PassedTensorSource.name
    label_names: list[str] | None = None
    """The names of the labels 0, 1, ... of the sources, where they have names."""

    def load(self, split: str) -> Table | None:
        if split != "train":
            return None
        tables = [self._read(section, "train") for section in self.config.sources]
        if any(table.keys() != tables[0].keys() for table in tables):
            columns = "; ".join(", ".join(table) for table in tables)
            raise DataError(f"data.sources: all must have the same columns; they have: {columns}")
        if len(tables) == 1:
            return tables[0]
        try:
            return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}
        except RuntimeError as error:
            raise DataError(f"data.sources: their rows do not fit together: {error}") from None

    def load_evaluation(self) -> Mapping[str, Table]:
        sections = self.config.eval_sources
        return {
            name: self._read(section, "eval")
            for name, section in zip(evaluation_names(sections), sections, strict=True)
        }

    def _read(self, section: DataSourceConfig, split: str) -> Table:
        source: Any = lookup("data_source", section.type)(self, section)  # type: ignore[call-arg]
        rows = source(split)
        names: list[str] | None = getattr(source, "label_names", None)
        if None not in (names, self.label_names) and names != self.label_names:
            own, before = (", ".join(some or ()) for some in (names, self.label_names))
            raise DataError(
                f"{source}: its classes are {own}, and those before {before}; give all of them classes: [...]"
            )
        self.label_names = self.label_names or names
        table = dict(rows) if isinstance(rows, Mapping) else {"rows": rows}
        if not table or not all(isinstance(column, Tensor) for column in table.values()):
            raise DataError(f"data source {section.type!r}: expected a tensor, or a mapping of tensors")
        lengths = {name: len(column) for name, column in table.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"data source {section.type!r}: all columns must have as many rows; they have {lengths}")
        return table

    @hook("create_loader")
    def create_loader(self, samples: Table, *, train: bool) -> Loader:
        order = self.order(len(next(iter(samples.values()))), train=train)
        return TensorLoader(samples, order, even_batches=self.even_batches)


class TensorLoader(OrderedLoader):
    """Reads micro-batches by index; a rank without a row of the last global batch gets a batch of no rows.

    With ``even_batches`` all have ``micro_batch_size`` rows, and ``row_weights``, fp32 ``[n]``: 0 for a row that only
    fills a batch, and 1 for the others.
    """

    dataset: Table

    def __init__(self, dataset: Table, order: GlobalOrder, *, even_batches: bool = False) -> None:
        super().__init__(dataset, order)
        self.even_batches = even_batches

    def __iter__(self) -> Iterator[Table]:
        for epoch, row in self.positions():
            rows = torch.from_numpy(self.order.batch(epoch, row))
            missing = self.order.micro_batch_size - len(rows) if self.even_batches else 0
            weights = torch.ones(len(rows) + missing)
            weights[len(rows) :] = 0
            rows = torch.cat([rows, rows.new_zeros(missing)])
            first = self.order.first_row(epoch) + self.order.rank_indices(row).start
            batch = {name: column[rows] for name, column in self.dataset.items()}
            batch |= {"row_weights": weights} if self.even_batches else {}
            yield {**batch, "draw": torch.arange(first, first + len(rows))}
