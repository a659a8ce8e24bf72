"""Sources of Hugging Face data sets: of the hub, or of a local folder or file."""

import glob
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from arctic_training.config.checks.files import is_hub_name, unreadable
from arctic_training.config.checks.hub import unavailable
from arctic_training.config.checks.problems import Problem, problems_of_keys
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.data.formats.remarks import unread_columns
from arctic_training.data.sources import split as splits
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.extensions import SOURCE_BY_EXTENSION, extension
from arctic_training.data.sources.local_folder import arguments_of
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

_NAMED_SPLIT = re.compile(r"(.+?):([\w.\-]+(?:\[[^\]]*\])?)")


class HFDataSourceConfig(splits.SplitSourceConfig):
    """A source of a Hugging Face data set."""

    name_or_path: Annotated[str, RESUME_SAFE] = Field(min_length=1)
    """A data set of the hub, or a local folder or file; ``name:split`` and ``name:split[slice]`` name the split too."""
    kwargs: dict[str, Any] = {}
    """Passed to ``datasets.load_dataset``: ``name`` (the configuration), ``revision``, ``data_files`` and so on."""
    split_mapping: dict[str, str] = {}
    """The source's own names of splits: ``{train: train_sft, eval: test_sft}``."""
    streaming: bool = False
    """Read while training rather than before. Needs ``train_iters`` or ``epoch_length``."""

    @property
    def local_size(self) -> float:
        path, named = Path(self.name_or_path).expanduser(), _NAMED_SPLIT.fullmatch(self.name_or_path)
        if named and not path.exists():
            path = Path(named[1]).expanduser()
        if self.kwargs or not path.exists():  # the arguments may name other files
            return math.inf
        return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())

    def missing_paths(self) -> list[Problem]:
        if self.name_or_path.startswith("buckets/") or "://" in self.name_or_path:  # of the hub, with longer names
            return []
        named = _NAMED_SPLIT.fullmatch(self.name_or_path)
        why = unreadable(self.name_or_path) and unreadable(named[1] if named else self.name_or_path)
        return problems_of_keys({"name_or_path": why})


class HFDataSource(DataSource):
    """A data set of the hub, or a folder or file that `datasets` reads."""

    name = "huggingface"
    config: HFDataSourceConfig
    known_splits: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "HuggingFaceH4/ultrachat_200k": {"train": "train_sft", "eval": "test_sft"},
        "HuggingFaceH4/ultrafeedback_binarized": {"train": "train_prefs", "eval": "test_prefs"},
    }
    """The ``split_mapping`` of known data sets, by name."""

    def load(self, config: HFDataSourceConfig, split: str) -> "Dataset | IterableDataset":
        name = config.name_or_path
        if not Path(name).exists() and (named := _NAMED_SPLIT.fullmatch(name)):
            name, split = named[1], split if config.split else named[2]
        split_name = splits.parse(split)[0]
        mapping = {**self.known_splits.get(name, {}), **config.split_mapping}
        sliced = split.removeprefix(split_name)
        if config.streaming and sliced:
            raise DataError(f"{self}: a stream has no length, so that {split!r} cannot be cut out of it")
        parts = self.read(name, config)
        if not isinstance(parts, Mapping):
            parts = {"train": parts}
        own_name = mapping.get(split_name, split_name)
        part = splits.find_split(list(parts), own_name)
        if part is None and len(parts) == 1 and split_name == "eval":
            part = next(iter(parts))  # an evaluation source without splits
        if part is None:
            raise DataError(f"{self}: there is no split {own_name!r}; there are {', '.join(parts)}")
        rows = parts[part] if config.streaming else splits.select_split(parts[part], "x" + sliced)
        if not config.streaming and not len(rows):
            raise DataError(f"{self}: there are no rows in {split}")
        return rows

    def read(
        self, name: str, config: HFDataSourceConfig
    ) -> "DatasetDict | IterableDatasetDict | Dataset | IterableDataset":
        """Returns all splits of a data set by name, or a data set without splits. Raises `DataError`."""
        import datasets

        folder = Path(name).expanduser()
        saved = folder / "dataset_dict.json", folder / "state.json"
        owner, slash, _ = name.partition("/")  # without one, it may be a format, such as json
        may_be_kept = any(Path(datasets.config.HF_DATASETS_CACHE).glob(f"{owner}___*"))
        if slash and is_hub_name(name) and not may_be_kept and (why := unavailable(name, "dataset")):
            raise DataError(f"data set {name} cannot be loaded: {why}")
        try:
            if any(file.exists() for file in saved):
                return datasets.load_from_disk(str(folder))
            where, kwargs = name, config.kwargs
            if folder.is_file() and "data_files" not in kwargs:  # datasets would look for its name on the hub
                where, kwargs = str(folder.parent), {**kwargs, "data_files": glob.escape(folder.name)}
            if folder.exists():
                kwargs = arguments_of(where, kwargs)
            return datasets.load_dataset(where, streaming=config.streaming, **kwargs)
        except Exception as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            why = re.sub(r" with any supported extension \[.*", "", why)
            known = SOURCE_BY_EXTENSION.get(extension(folder))
            if folder.is_file() and known is None:
                why = f"files with the extension {extension(folder)} are unknown; known are "
                why += (
                    f"{', '.join(SOURCE_BY_EXTENSION)}, compressed or not; of others give the type, such as type: jsonl"
                )
            elif folder.is_file() and not config.kwargs:
                why = f"the library datasets does not read it; give type: {known} in place of type: {config.type}"
            elif datasets.config.HF_HUB_OFFLINE and is_hub_name(name) and not folder.exists():
                why += "; HF_HUB_OFFLINE is set: unset it, or name a local copy"
            raise DataError(f"data set {name} cannot be loaded: {why}") from error

    def require_column(self, rows: "Dataset | IterableDataset", column: str, key: str) -> None:
        """Raises `DataError` when ``rows`` lack ``column``, which ``key`` of the recipe names."""
        columns = list(rows.column_names or ())
        if columns and column not in columns:
            raise DataError(f"{self}: there is no column {column!r}, which {key} names; there are {', '.join(columns)}")


class HFCausalConfig(HFDataSourceConfig):
    """A source of plain text."""

    column: str = "text"
    """The column with the text."""


class HFCausalSource(HFDataSource):
    """Data sets of plain text."""

    name = "huggingface_causal"
    config_type = HFCausalConfig

    def load(self, config: Any, split: str) -> "Dataset | IterableDataset":
        rows = super().load(config, split)
        self.require_column(rows, config.column, "column")
        unread_columns(rows.column_names or (), [config.column])
        rows = rows.select_columns([config.column])
        return rows if config.column == "text" else rows.rename_column(config.column, "text")


class UltraFeedbackConfig(HFDataSourceConfig):
    """The source of UltraFeedback."""

    name_or_path: Annotated[str, RESUME_SAFE] = "HuggingFaceH4/ultrafeedback_binarized"
    """The data set of the hub, or a local copy of it."""


class UltraFeedbackSource(HFDataSource):
    """UltraFeedback: preferences with ``chosen`` and ``rejected`` chats."""

    name = "HuggingFaceH4/ultrafeedback_binarized"
    config_type = UltraFeedbackConfig


class ProjectGutenbergConfig(HFDataSourceConfig):
    """The source of Project Gutenberg."""

    name_or_path: Annotated[str, RESUME_SAFE] = "manu/project_gutenberg"
    """The data set of the hub, or a local copy of it, with the books in its column ``text``."""
    split_mapping: dict[str, str] = {"train": "en", "eval": "en"}
    """The source's own names of splits, which are languages."""


class ProjectGutenbergSource(HFDataSource):
    """Books of Project Gutenberg, each the answer to a request: very long samples."""

    name = "ProjectGutenbergSFT"
    config_type = ProjectGutenbergConfig

    def load(self, config: Any, split: str) -> "Dataset | IterableDataset":
        rows = super().load(config, split)
        self.require_column(rows, "text", "the data set")
        return rows.map(_book, batched=True, remove_columns=rows.column_names)


def _book(columns: Mapping[str, list[str]]) -> dict[str, list[Any]]:
    request = {"role": "user", "content": "Write a book."}
    return {"messages": [[request, {"role": "assistant", "content": text}] for text in columns["text"]]}
