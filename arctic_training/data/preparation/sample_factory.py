"""The part of a data factory that prepares samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from arctic_training.component import TrainerView
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.preparation.samples import Indices, Sample, SampleList, Samples
from arctic_training.data.sources.base import DataSource

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class SampleFactory(Protocol):
    """The interface of a `SourcedDataFactory` that preparation and streams use."""

    @property
    def trainer(self) -> TrainerView:
        """The run."""

    @property
    def config(self) -> Any:
        """A `SourcedDataConfig`."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the run."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids of the tokenizer."""

    @property
    def cache_folder(self) -> Path:
        """The folder of the data cache."""

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""

    def packs(self, config: Any) -> bool:
        """Returns whether a row of a batch holds several samples."""

    def sources(self, configs: Sequence[DataSourceConfig]) -> list[DataSource]:
        """Returns the sources of the recipe sections."""

    def process(self, dataset: "Dataset") -> "Dataset":
        """Returns the samples of a `datasets.Dataset` of rows."""

    def no_target(self, sample: Sample) -> str:
        """Returns why rows like ``sample`` have no labels, as a clause for the log."""

    def postprocess_samples(self, samples: Samples) -> SampleList:
        """Returns what becomes of samples after the cache: truncated, split or concatenated."""

    def group(self, samples: SampleList) -> Sequence[Indices] | None:
        """Returns the samples of each row; None where a row is a sample."""

    def batch(self, samples: list[Sample]) -> object:
        """Returns the micro-batch of ``samples``."""
