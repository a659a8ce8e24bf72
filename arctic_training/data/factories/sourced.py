"""The base of data factories for text: samples of tokens, encoded once from the rows of sources and cached."""

import functools
import socket
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from arctic_training.callback.hooks import hook
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.base import DataFactory, Loaders
from arctic_training.data.factories.config import SourcedDataConfig, evaluation_names
from arctic_training.data.factories.model_facts import context_length
from arctic_training.data.formats import remarks
from arctic_training.data.preparation import cache, prepare
from arctic_training.data.preparation.code_fingerprint import code_fingerprint
from arctic_training.data.preparation.extra_columns import collate_columns
from arctic_training.data.preparation.load_rows import load_rows
from arctic_training.data.preparation.map_rows import Encode, map_rows
from arctic_training.data.preparation.samples import Sample, SampleList, Samples
from arctic_training.data.preparation.unknown_tokens import UnknownTokenReport, strict_unk_id
from arctic_training.data.sources import files, generator, huggingface, instruct, text  # noqa: F401
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.passed import PassedSource
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import DataError
from arctic_training.logging import logger
from arctic_training.registry import lookup

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

C = TypeVar("C", bound=SourcedDataConfig)


class SourcedDataFactory(DataFactory[C]):
    """Base of data factories that encode the rows of sources; a subclass defines `process`.

    Samples are cached under a key of everything that they depend on.
    """

    config_type: ClassVar[type[ComponentConfig]] = SourcedDataConfig
    passed_source = PassedSource.name
    not_in_cache_key: ClassVar[frozenset[str]] = frozenset(
        {
            "seed",
            "dl_num_workers",
            "drop_last",
            "sources",
            "eval_sources",
            "train_eval_split",
            "num_proc",
            "cache_dir",
            "cache_fs_type",
            "fail_on_missing_cache",
            "use_data_cache",
            "cache_processed_data",
        }
    )
    """Keys of the section on which the samples do not depend. All others, a subclass's too, are in the cache key."""

    row_counts: dict[str, remarks.Remarks]

    @classmethod
    def packs(cls, config: Any) -> bool:
        return bool(getattr(config, "pack_samples", False))

    def __init__(self, trainer: TrainerView, config: C) -> None:
        super().__init__(trainer, config)
        self.row_counts = {}
        for name in ("use_data_cache", "cache_processed_data"):
            if name in config.model_fields_set:
                logger.warning(f"data.{name} is deprecated and changes nothing: prepared data are always cached")

    @property
    def encodes_prompts(self) -> bool:
        """Returns whether samples hold prompts, for evaluators that generate completions."""
        return False

    @hook("process")
    @abstractmethod
    def process(self, dataset: "Dataset") -> "Dataset":
        """Returns the samples of rows: a `datasets.Dataset` with columns of tokens. See `map_rows`.

        Samples whose ``labels`` are all -100 are dropped. Raises `RowError`, or `DataError` for all rows.
        """

    def map_rows(self, dataset: "Dataset", encode: Encode) -> "Dataset":
        """Returns a `datasets.Dataset` of what ``encode`` returns for the rows; see `preparation.map_rows`."""
        return map_rows(dataset, encode, processes=self.config.num_proc, folder=self.cache_folder)

    def sample_settings(self) -> dict[str, Any]:
        """Returns what the samples depend on beside rows, tokenizer and code, as values of JSON, for the cache key."""
        return self.config.model_dump(mode="json", exclude=set(self.not_in_cache_key))

    @property
    def tokenize_arguments(self) -> dict[str, Any] | None:
        """Arguments for the tokenizer, from the recipe."""
        return getattr(self.trainer.config.tokenizer, "tokenize_kwargs", None)

    def no_target(self, sample: Sample) -> str:
        """Returns why rows like ``sample`` have no labels, as a clause for the log: ``have no target token``."""
        return "have no target token"

    @hook("finish")
    def postprocess_samples(self, samples: Samples) -> SampleList:
        """Returns the samples to train or evaluate on. What this does is not cached, so it should be fast."""
        return samples

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest token id of the tokenizer, plus one. Computed once: streams use it with every buffer."""
        return 2**31 if self.tokenizer is None else max(self.tokenizer.get_vocab().values(), default=0) + 1

    @property
    def cache_folder(self) -> Path:
        """The folder of the data cache."""
        return (self.config.cache_dir or cache.default_folder()).expanduser().absolute()

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the run."""
        return self.trainer.tokenizer

    @functools.cached_property
    def max_length(self) -> int:
        """Tokens of the longest sample. Raises `DataError` when neither recipe, model nor tokenizer gives it."""
        if self.config.max_length is not None:
            return int(self.config.max_length)
        length = context_length(self.trainer)
        if length is None:
            raise DataError(
                "data.max_length: give it; neither the model's config nor the tokenizer says what they take"
            )
        return length

    def batch(self, samples: list[Any]) -> Batch:
        """Returns the part of a micro-batch that this rank has, with the ``extra_columns`` of all its samples."""
        return self.add_extra_columns(super().batch(samples), samples)

    def add_extra_columns(self, batch: Batch, samples: list[Any]) -> Batch:
        """Returns ``batch`` with the ``extra_columns`` of its samples. Raises `DataError` when it has such a key."""
        names = self.config.extra_columns
        if taken := [name for name in names if name in batch]:
            raise DataError(f"data.extra_columns: batches have a key {taken[0]} already; rename the column")
        return {**batch, **collate_columns(samples, names)} if names else batch

    @functools.cached_property
    def _samples(self) -> Samples:
        """The samples of the training sources, of which evaluation may get a share."""
        return self.prepared_samples("train", self.config.sources)

    def load(self, split: str) -> SampleList | None:
        """Returns the samples of the sources (``train``), the share to evaluate on (``eval``), or what is in it of one
        source (``eval/<source>``).

        Raises `DataError` when a single sample is to be split.
        """
        train, evaluation = self.config.train_eval_split
        if split != "train" and not evaluation:
            return None
        with remarks.collect() as self.row_counts[split]:
            return self._share(split, train, evaluation)

    def _share(self, split: str, train: float, evaluation: float) -> SampleList | None:
        """Returns the samples of ``split``, or None; ``train`` and ``evaluation`` are the shares of both."""
        samples = self._samples
        if evaluation:
            if len(samples) < 2:
                raise DataError("data.train_eval_split: a single sample cannot be split; give eval_sources")
            order = np.random.Generator(np.random.PCG64(self.config.seed)).permutation(len(samples))
            border = min(max(round(train * len(samples)), 1), len(samples) - 1)
            chosen = np.sort(order[:border] if split == "train" else order[border:])
            if source := split.partition("/")[2]:
                number = evaluation_names(self.config.sources).index(source)
                chosen = chosen[prepare.source_numbers(samples.table)[chosen] == number]
            if not len(chosen):
                return None
            samples = samples.select(chosen)
        return self.postprocess_samples(samples)

    def load_evaluation(self) -> Mapping[str, Any]:
        if not self.config.eval_sources:
            return self._evaluation_of_sources() or super().load_evaluation()
        names = evaluation_names(self.config.eval_sources)
        samples = {}
        for name, source in zip(names, self.config.eval_sources, strict=True):
            with remarks.collect() as self.row_counts[name]:
                samples[name] = self.postprocess_samples(self.prepared_samples("eval", [source]))
        return samples

    def _evaluation_of_sources(self) -> Mapping[str, Any]:
        """Returns the share of each source to evaluate on, as parts of the set ``eval``; none where that is not made of
        several, where a class loads it itself, and where a loss compares rows of all sources."""
        names = evaluation_names(self.config.sources)
        own_load = type(self).load is not SourcedDataFactory.load
        if len(names) < 2 or not self.config.train_eval_split[1] or own_load or self.even_batches:
            return {}
        sets = {f"eval/{name}": self.load(f"eval/{name}") for name in names}
        filled = {name: samples for name, samples in sets.items() if samples}
        return filled if len(filled) > 1 else {}

    def __call__(self) -> Loaders:
        from arctic_training.data.batching.stream import stream_loader

        if any(getattr(source, "streaming", False) for source in self.config.sources):
            train = stream_loader(self)
            evaluation = {name: self.create_loader(data, train=False) for name, data in self.load_evaluation().items()}
            return Loaders(train, evaluation)
        return super().__call__()

    def sources(self, configs: Sequence[DataSourceConfig]) -> list[DataSource]:
        """Returns the sources of sections of the recipe."""
        return [lookup("data_source", config.type)(self, config) for config in configs]  # type: ignore[call-arg, misc]

    def prepared_samples(self, split: str, configs: Sequence[DataSourceConfig]) -> Samples:
        """Returns the samples of sources from the cache. One process prepares them; the others wait, however long.

        Raises `DataError`.
        """
        store = cache.Cache(self.cache_folder)
        kind = self.config.cache_fs_type
        each_machine = kind == "local" or (kind == "auto" and not cache.is_shared(self.cache_folder))
        key = ""
        with collectives.main_process_first(each_machine=each_machine) as first:
            if first:
                key = self._fill_cache(store, split, self.sources(configs))
        machine = socket.gethostname() if each_machine else ""
        keys = dict(reversed([entry for entry in collectives.all_gather_object((machine, key)) if entry[1]]))
        table, notes, counts = store.read(keys[machine])
        remarks.repeat(counts)
        for note in notes if process_group.is_main() else ():
            logger.warning(note)
        return Samples(table)

    def _fill_cache(self, store: cache.Cache, split: str, sources: Sequence[DataSource]) -> str:
        """Prepares the samples unless the cache has them, and returns their key. Raises `DataError`."""
        loaded: dict[int, Any] = {}
        fingerprints = []
        for n, source in enumerate(sources):
            fingerprint = source.fingerprint(split)
            if fingerprint is None:
                loaded[n] = load_rows(source, split)
                fingerprint = cache.rows_fingerprint(loaded[n])
            fingerprints.append([type(source).__qualname__, source.config.model_dump(mode="json"), fingerprint])
        key = cache.key(
            {
                "split": split,
                "sources": fingerprints,
                "settings": self.sample_settings(),
                "max_length": None if "max_length" in self.not_in_cache_key else self.max_length,
                "tokenizer": cache.tokenizer_fingerprint(self.tokenizer),
                "tokenizer_settings": self.trainer.config.tokenizer.model_dump(mode="json"),
                "strict_unk_id": strict_unk_id(self.tokenizer),
                "prompts": self.encodes_prompts,
                "code": code_fingerprint([type(self), *(cls for source in sources for cls in source.classes)]),
                "libraries": cache.library_versions(),
            }
        )
        if store.has(key):
            return key
        if self.config.fail_on_missing_cache:
            raise DataError(f"{store.folder} does not hold the prepared data {key}, and fail_on_missing_cache is set")
        unknown = UnknownTokenReport(self)
        rows = [loaded[n] if n in loaded else load_rows(source, split) for n, source in enumerate(sources)]
        table, notes, counts = prepare.prepare_samples(self, sources, rows, unknown)
        if unknown.places:
            self._add_evaluation_tokens(unknown, [source.config for source in sources])
            raise unknown.to_error()
        store.write(key, table, notes, counts)
        return key

    def _add_evaluation_tokens(self, unknown: UnknownTokenReport, read: Sequence[DataSourceConfig]) -> None:
        """Adds the unknown tokens of the evaluation sources that were not ``read``, so that one error names all."""
        for config in self.config.eval_sources:
            if any(config is other for other in read):
                continue
            with suppress(DataError):  # the next run reports it
                (source,) = self.sources([config])
                prepare.prepare_samples(self, [source], [load_rows(source, "eval")], unknown)
