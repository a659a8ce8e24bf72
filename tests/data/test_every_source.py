"""Rules for every registered data source."""

from typing import Any

import pytest

from arctic_training.config.recipe.describe import descriptions
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.sources.base import DataSource
from arctic_training.errors.types import DataError
from arctic_training.registry import lookup, names

SOURCES: list[Any] = [lookup("data_source", name) for name in names("data_source")]
OF_A_PATH = [
    one for one in SOURCES if {"name_or_path", "rows"} & one.config_type.model_fields.keys() == {"name_or_path"}
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_it_is_whole(source: type[DataSource]) -> None:
    assert issubclass(source.config_type, DataSourceConfig)
    assert not getattr(source, "__abstractmethods__", None)
    assert {"load"} <= source.events()
    assert descriptions(source.config_type).keys() == source.config_type.model_fields.keys()
    assert source.__doc__


@pytest.mark.parametrize("split", ["train", "eval", "train[:3]"])
@pytest.mark.parametrize("source", OF_A_PATH, ids=str)
def test_what_is_not_there_is_a_data_error(source: type[DataSource], split: str) -> None:
    config = source.config_type.model_validate({"type": source.name, "name_or_path": "/nowhere/none.jsonl"})
    with pytest.raises(DataError, match=r"/nowhere/none\.jsonl"):
        source(None, config)(split)
