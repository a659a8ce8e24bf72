"""Sources of the rows that a Python program passes to a trainer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Annotated, Protocol, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.utils.data import TensorDataset, default_collate

from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.config.sections.passed import PASSED, PASSED_TENSORS
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_NAMES = ("rows", "labels")
"""The columns that tensors without names become."""


class PassedSourceConfig(DataSourceConfig):
    """A source of rows that a program passes."""

    name_or_path: Annotated[str, RESUME_SAFE] = "rows"
    """The name of the rows in messages."""
    rows: Annotated[object, RESUME_SAFE] = Field(default=None, exclude=True, repr=False)
    """The rows: ``SFTTrainer(config, train_dataset=rows)``."""

    @property
    def streaming(self) -> bool:
        """Returns whether the rows are a stream, read while training."""
        return hasattr(self.rows, "load_state_dict")

    @model_validator(mode="after")
    def _check_passed(self) -> "PassedSourceConfig":
        if self.rows is None:
            raise ValueError("rows: no recipe can hold them; pass them in Python: Trainer(config, train_dataset=...)")
        return self


class PassedSource(DataSource):
    """Rows that a Python program passes: a list, a `datasets.Dataset`, or a torch Dataset of mappings."""

    name = PASSED
    config: PassedSourceConfig

    def load(self, config: PassedSourceConfig, split: str) -> "Dataset | IterableDataset":
        """Returns the rows as a `datasets.Dataset`; one of ``datasets`` as it is, or what its transform
        makes of its rows. Raises `DataError`."""
        import datasets

        if isinstance(config.rows, datasets.Dataset | datasets.IterableDataset) and not _is_transformed(config.rows):
            return config.rows
        return to_dataset(self._mappings(), getattr(self.data_factory, "cache_folder", None))

    def _mappings(self) -> Iterator[dict[str, object]]:
        for number, row in enumerate(_items(self.config.rows)):
            if not isinstance(row, Mapping):
                raise DataError(f"{self.place(number)}: a row is a mapping of columns, not {type(row).__name__}")
            yield {str(name): _plain(value) for name, value in row.items()}


class PassedTensorSource(DataSource):
    """Rows of tensors that a Python program passes: a tensor, a mapping of columns, or a torch Dataset."""

    name = PASSED_TENSORS
    config: PassedSourceConfig

    def load(self, config: PassedSourceConfig, split: str) -> dict[str, torch.Tensor]:
        """Returns a tensor for each column. Tensors without names become ``rows``, and a second one ``labels``.

        Raises `DataError` for rows that do not make tensors.
        """
        try:
            return {name: torch.as_tensor(column) for name, column in self._columns(config.rows).items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{self}: the rows do not make tensors: {error}") from error

    def _columns(self, rows: object) -> Mapping[str, object]:
        if isinstance(rows, Mapping):
            return rows
        if isinstance(rows, (torch.Tensor, np.ndarray)):
            columns: object = (rows,)
        elif hasattr(rows, "with_format") and not _is_transformed(rows):
            columns = rows.with_format("torch", columns=_format(rows).get("columns"))[:]
        elif isinstance(rows, TensorDataset):
            columns = rows.tensors
        else:
            columns = default_collate(list(_items(rows)))
        if isinstance(columns, Mapping):
            return columns
        several = [columns] if isinstance(columns, torch.Tensor) else list(cast(Sequence[object], columns))
        if len(several) > len(_NAMES):
            raise DataError(f"{self}: rows of {len(several)} parts; name them: a row is a mapping of columns")
        return dict(zip(_NAMES, several, strict=False))


class _Indexed(Sized, Protocol):
    def __getitem__(self, index: int, /) -> object: ...


def _items(rows: object) -> Iterator[object]:
    """Yields the rows of a list, of a torch Dataset with a length, or of anything that can be gone through."""
    if hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
        indexed = cast(_Indexed, rows)
        yield from (indexed[number] for number in range(len(indexed)))
    else:
        yield from cast(Iterable[object], rows)


def _plain(value: object) -> object:
    """Returns the Python value of a tensor or an array; any other value as it is."""
    return value.tolist() if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) else value


def _format(rows: object) -> Mapping[str, object]:
    """Returns the format of rows that are a `datasets.Dataset`; of others nothing."""
    form = getattr(rows, "format", None)
    return form if isinstance(form, Mapping) else {}


def _is_transformed(rows: object) -> bool:
    """Returns whether rows are a `datasets.Dataset` with a transform, which makes them when they are read."""
    return _format(rows).get("type") == "custom"


def has_tokens(rows: object) -> bool:
    """Returns whether the rows have a column ``input_ids``: they are tokens already."""
    columns = None if _is_transformed(rows) else getattr(rows, "column_names", None)
    if columns is None and hasattr(rows, "__len__"):
        columns = next(_items(rows), None)
    return isinstance(columns, (Mapping, Sequence)) and "input_ids" in columns
