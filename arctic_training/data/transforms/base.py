"""The base of row transforms, which change the rows of a source before they are tokenized."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import Field

from arctic_training.config.sections.base import C, ComponentConfig
from arctic_training.config.sections.component import Configured
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError
from arctic_training.registry import lookup

Row = Mapping[str, Any]


class RowTransform(Configured[C], ABC, kind="row_transform"):
    """Changes a row. The ``transforms`` of a data source name several, which are applied in their order."""

    @abstractmethod
    def __call__(self, row: Row) -> Row:
        """Returns the row to train on. Raises `DataError` for one that it cannot read; the caller names the row."""


class ColumnsConfig(ComponentConfig):
    """Keys of a transform of texts."""

    columns: list[str] = Field(default=["answer"], min_length=1)
    """The columns that are changed; they hold text."""


def create_transforms(configs: Sequence[ComponentConfig]) -> list[RowTransform[ComponentConfig]]:
    """Returns the transforms that read ``configs``."""
    kinds = [cast(type[RowTransform[ComponentConfig]], lookup("row_transform", config.type)) for config in configs]
    return [kind(config) for kind, config in zip(kinds, configs, strict=True)]


def change_texts(row: Row, columns: Sequence[str], change: Callable[[str], str]) -> Row:
    """Returns ``row`` with ``change`` of the text in each of ``columns``.

    Raises `DataError` for a missing column, one without text, and a text that ``change`` refuses by a ValueError.
    """
    changed = dict(row)
    for name in columns:
        if not isinstance(text := row.get(name), str):
            what = f"{short_repr(row[name])}; expected text" if name in row else f"missing; there are {', '.join(row)}"
            raise DataError(f"the column {name} is {what}")
        try:
            changed[name] = change(text)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from None
    return changed
