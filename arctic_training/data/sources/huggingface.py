"""Rows out of Hugging Face data sets: of the hub, or of a local folder or file."""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.checks.paths import unreadable
from arctic_training.config.checks.problems import Problem
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.formats.remarks import unread_columns
from arctic_training.data.sources import split as splits
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.extensions import SOURCE_BY_EXTENSION, extension
from arctic_training.errors.types import DataError

_NAMED_SPLIT = re.compile(r"(.+?):([\w.\-]+(?:\[[^\]]*\])?)")


class HFDataSourceConfig(DataSourceConfig):
    name_or_path: Annotated[str, RESUME_SAFE] = Field(min_length=1)
    """A data set of the hub, or a local folder or file; ``name:split`` and ``name:split[slice]`` name the split too."""
    kwargs: dict[str, Any] = {}
    """Handed to ``datasets.load_dataset``: ``name`` (the configuration), ``revision``, ``data_files`` and so on."""
    split_mapping: dict[str, str] = {}
    """What the source calls a split: ``{train: train_sft, eval: test_sft}``."""
    streaming: bool = False
    """Read while training rather than before. Needs ``train_iters``."""

    @field_validator("split")
    @classmethod
    def _is_a_split(cls, value: str) -> str:
        return splits.written(value)

    def missing_paths(self) -> list[Problem]:
        named = _NAMED_SPLIT.fullmatch(self.name_or_path)
        told = unreadable(self.name_or_path) and unreadable(named[1] if named else self.name_or_path)
        return [Problem(("name_or_path",), told)] if told else []


class HFDataSource(DataSource):
    """A data set of the hub, or a folder or file that `datasets` reads."""

    name = "huggingface"
    config_type = HFDataSourceConfig
    known_splits: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "HuggingFaceH4/ultrachat_200k": {"train": "train_sft", "eval": "test_sft"},
        "HuggingFaceH4/ultrafeedback_binarized": {"train": "train_prefs", "eval": "test_prefs"},
    }
    """The ``split_mapping`` of data sets that are known, by name."""

    def load(self, config: Any, split: str) -> Any:
        name = config.name_or_path
        if not Path(name).exists() and (named := _NAMED_SPLIT.fullmatch(name)):
            name, split = named[1], split if config.split else named[2]
        wanted = splits.parse(split)[0]
        mapping = {**self.known_splits.get(name, {}), **config.split_mapping}
        sliced = split.removeprefix(wanted)
        if config.streaming and sliced:
            raise DataError(f"{self}: a stream has no length, so that {split!r} cannot be cut out of it")
        there = self.read(name, config)
        if not isinstance(there, Mapping):
            there = {"train": there}
        chosen = splits.choose(list(there), mapping.get(wanted, wanted))
        if chosen is None and len(there) == 1 and wanted == "eval":
            chosen = next(iter(there))  # a source that was given for evaluation, and has no parts
        if chosen is None:
            raise DataError(f"{self}: there is no split {mapping.get(wanted, wanted)!r}; there are {', '.join(there)}")
        rows = there[chosen] if config.streaming else splits.cut(there[chosen], "x" + sliced)
        if not config.streaming and not len(rows):
            raise DataError(f"{self}: there are no rows in {split}")
        return rows

    def read(self, name: str, config: Any) -> Any:
        """All splits of a data set by name, or a data set without any. Raises `DataError`."""
        import datasets

        folder = Path(name).expanduser()
        saved = folder / "dataset_dict.json", folder / "state.json"
        try:
            if any(file.exists() for file in saved):
                return datasets.load_from_disk(str(folder))
            where, kwargs = name, config.kwargs
            if folder.is_file() and "data_files" not in kwargs:  # datasets would look for its name on the hub
                where, kwargs = str(folder.parent), {**kwargs, "data_files": glob.escape(folder.name)}
            return datasets.load_dataset(where, streaming=config.streaming, **kwargs)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            said = re.sub(r" with any supported extension \[.*", "", said)
            if folder.is_file() and extension(folder) not in SOURCE_BY_EXTENSION:
                known = ", ".join(SOURCE_BY_EXTENSION)
                said = f"files with the extension {extension(folder)} are unknown; known are {known}, "
                said += "compressed or not; of others give the type, such as type: jsonl"
            elif datasets.config.HF_HUB_OFFLINE and not (folder.exists() or name.startswith((".", "/", "~"))):
                said += "; HF_HUB_OFFLINE is set: unset it, or name a local copy"
            raise DataError(f"data set {name} cannot be loaded: {said}") from error

    def take(self, rows: Any, column: str, where: str) -> None:
        """Raises `DataError` when ``rows`` lack ``column``, which the recipe names in ``where``."""
        there = list(rows.column_names or ())
        if there and column not in there:
            raise DataError(f"{self}: there is no column {column!r}, which {where} names; there are {', '.join(there)}")


class HFCausalConfig(HFDataSourceConfig):
    column: str = "text"
    """The column with the text."""


class HFCausalSource(HFDataSource):
    """Plain text."""

    name = "huggingface_causal"
    config_type = HFCausalConfig

    def load(self, config: Any, split: str) -> Any:
        rows = super().load(config, split)
        self.take(rows, config.column, "column")
        unread_columns(rows.column_names or (), [config.column])
        rows = rows.select_columns([config.column])
        return rows if config.column == "text" else rows.rename_column(config.column, "text")


class UltraFeedbackConfig(HFDataSourceConfig):
    name_or_path: Annotated[str, RESUME_SAFE] = "HuggingFaceH4/ultrafeedback_binarized"
    """The data set of the hub, or a local copy of it."""


class UltraFeedbackSource(HFDataSource):
    """Preferences: ``chosen`` and ``rejected`` chats."""

    name = "HuggingFaceH4/ultrafeedback_binarized"
    config_type = UltraFeedbackConfig


class ProjectGutenbergConfig(HFDataSourceConfig):
    name_or_path: Annotated[str, RESUME_SAFE] = "manu/project_gutenberg"
    """The data set of the hub, or a local copy of it, with the books in its column ``text``."""
    split_mapping: dict[str, str] = {"train": "en", "eval": "en"}
    """What the source calls a split; here splits are languages."""


class ProjectGutenbergSource(HFDataSource):
    """Whole books, each the answer to a request for it: very long samples."""

    name = "ProjectGutenbergSFT"
    config_type = ProjectGutenbergConfig

    def load(self, config: Any, split: str) -> Any:
        rows = super().load(config, split)
        self.take(rows, "text", "the data set")
        return rows.map(_book, batched=True, remove_columns=rows.column_names)


def _book(columns: Mapping[str, list[str]]) -> dict[str, list[Any]]:
    asked = {"role": "user", "content": "Write a book."}
    return {"messages": [[asked, {"role": "assistant", "content": text}] for text in columns["text"]]}
