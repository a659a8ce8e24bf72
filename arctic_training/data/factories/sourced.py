"""Makes loaders of samples that come from sources and are made tokens of once. The base of every factory for text."""

import functools
import socket
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from arctic_training.callback.hooks import hook
from arctic_training.component import TrainerView
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.factories.base import DataFactory, Loaders
from arctic_training.data.factories.config import SourcedDataConfig, evaluation_names
from arctic_training.data.preparation import cache, prepare
from arctic_training.data.preparation.samples import Samples
from arctic_training.data.preparation.unknown_tokens import UnknownTokenReport, strict_unk_id
from arctic_training.data.sources import files, huggingface, instruct, text  # noqa: F401
from arctic_training.data.sources.base import DataSource
from arctic_training.distributed import collectives, process_group
from arctic_training.errors.types import DataError
from arctic_training.logging import logger
from arctic_training.registry import lookup

C = TypeVar("C", bound=SourcedDataConfig)


class SourcedDataFactory(DataFactory[C]):
    """A subclass writes `process`. What it makes is cached under a key of everything that it is made from."""

    config_type: ClassVar[type[ComponentConfig]] = SourcedDataConfig
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
    """Keys of the section that change nothing of what `process` makes. All others, a subclass's too, are in the key."""

    def __init__(self, trainer: TrainerView, config: C) -> None:
        super().__init__(trainer, config)
        for name in ("use_data_cache", "cache_processed_data"):
            if name in config.model_fields_set:
                logger.warning(f"data.{name} is deprecated and changes nothing: prepared data are always cached")

    @property
    def asks(self) -> bool:
        """Samples hold prompts, by which an evaluator asks a model for answers."""
        return False

    @hook("process")
    @abstractmethod
    def process(self, dataset: Any) -> Any:
        """Make samples of rows: a `datasets.Dataset` in, one with token columns out. `map_rows` helps.

        A column ``labels`` counts as a sample's targets, -100 being none; rows without any are left out.
        """

    def no_target(self, sample: Any) -> str:
        """Returns what is said of rows like ``sample``, which are left out because of their labels."""
        return "have no target token"

    @hook("finish")
    def postprocess_samples(self, samples: Any) -> Any:
        """What becomes of prepared samples before they are put in order; not cached, so it should be fast."""
        return samples

    @functools.cached_property
    def known_tokens(self) -> int:
        """Every token of the tokenizer is below it; looked up once, for streams ask with every buffer."""
        return 2**31 if self.tokenizer is None else max(self.tokenizer.get_vocab().values(), default=0) + 1

    @property
    def cache_folder(self) -> Path:
        return (self.config.cache_dir or cache.default_folder()).expanduser().absolute()

    @property
    def tokenizer(self) -> Any:
        return self.trainer.tokenizer

    @functools.cached_property
    def max_length(self) -> int:
        """Tokens of the longest sample. Raises `DataError` when neither recipe, model nor tokenizer says."""
        if self.config.max_length is not None:
            return int(self.config.max_length)
        length = context_length(self.trainer)
        if length is None:
            raise DataError(
                "data.max_length: give it; neither the model's config nor the tokenizer says how much they take"
            )
        return length

    @functools.cached_property
    def _samples(self) -> Samples:
        """What training and evaluation are parts of; looked for once."""
        return self.prepared("train", self.config.sources)

    def load(self, split: str) -> Any:
        """The finished samples of the sources (``train``), or the share of them that is evaluated on (``eval``)."""
        train, evaluation = self.config.train_eval_split
        if split != "train" and not evaluation:
            return None
        samples = self._samples
        if evaluation:
            if len(samples) < 2:
                raise DataError("data.train_eval_split: a single sample cannot be split; give eval_sources")
            order = np.random.Generator(np.random.PCG64(self.config.seed)).permutation(len(samples))
            border = min(max(round(train * len(samples)), 1), len(samples) - 1)
            samples = samples.select(np.sort(order[:border] if split == "train" else order[border:]))
        return self.postprocess_samples(samples)

    def load_evaluation(self) -> Mapping[str, Any]:
        if not self.config.eval_sources:
            return super().load_evaluation()
        names = evaluation_names(self.config.eval_sources)
        found = zip(names, self.config.eval_sources, strict=True)
        return {name: self.postprocess_samples(self.prepared("eval", [source])) for name, source in found}

    def __call__(self, *args: Any) -> Loaders:
        from arctic_training.data.batching.stream import stream_loader

        if any(getattr(source, "streaming", False) for source in self.config.sources):
            train = stream_loader(self)
            evaluation = {name: self.create_loader(data, train=False) for name, data in self.load_evaluation().items()}
            return Loaders(train, evaluation)
        return super().__call__(*args)

    def sources(self, configs: Sequence[DataSourceConfig]) -> list[DataSource]:
        return [lookup("data_source", config.type)(self, config) for config in configs]  # type: ignore[call-arg, misc]

    def prepared(self, split: str, configs: Sequence[DataSourceConfig]) -> Samples:
        """The samples of ``configs``, out of the cache. One process prepares them; the others wait however long."""
        store = cache.Cache(self.cache_folder)
        kind = self.config.cache_fs_type
        each_machine = kind == "local" or (kind == "auto" and not cache.shared(self.cache_folder))
        key = ""
        with collectives.main_process_first(each_machine=each_machine) as first:
            if first:
                key = self._fill(store, split, self.sources(configs))
        machine = socket.gethostname() if each_machine else ""
        found = dict(reversed([entry for entry in collectives.all_gather_object((machine, key)) if entry[1]]))
        table, notes = store.read(found[machine])
        for note in notes if process_group.is_main() else ():
            logger.warning(note)
        return Samples(table)

    def _fill(self, store: cache.Cache, split: str, sources: Sequence[DataSource]) -> str:
        """The key of the samples, which are in the cache from here on."""
        loaded: dict[int, Any] = {}
        told = []
        for n, source in enumerate(sources):
            fingerprint = source.fingerprint(split)
            if fingerprint is None:
                loaded[n] = prepare.load(source, split)
                fingerprint = cache.rows_fingerprint(loaded[n])
            told.append([type(source).__qualname__, source.config.model_dump(mode="json"), fingerprint])
        settings = self.config.model_dump(mode="json", exclude=set(self.not_in_cache_key))
        key = cache.key(
            {
                "split": split,
                "sources": told,
                "settings": settings,
                "max_length": None if "max_length" in self.not_in_cache_key else self.max_length,
                "tokenizer": cache.tokenizer_fingerprint(self.tokenizer),
                "tokenizer_settings": self.trainer.config.tokenizer.model_dump(mode="json"),
                "refused": strict_unk_id(self.tokenizer),
                "asks": self.asks,
                "code": cache.code_fingerprint([type(self), *(type(source) for source in sources)]),
                "libraries": prepare.versions(),
            }
        )
        if not store.has(key):
            if self.config.fail_on_missing_cache:
                raise DataError(
                    f"{store.folder} does not hold the prepared data {key}, and fail_on_missing_cache is set"
                )
            loaded = {n: loaded[n] if n in loaded else prepare.load(one, split) for n, one in enumerate(sources)}
            unknown = UnknownTokenReport(self)
            made = prepare.prepare(self, sources, [loaded[n] for n in range(len(sources))], unknown)
            if unknown.places:
                here = [source.config for source in sources]
                for config in (one for one in self.config.eval_sources if not any(one is told for told in here)):
                    with suppress(DataError):  # which is told when these are mended
                        (one,) = self.sources([config])
                        prepare.prepare(self, [one], [prepare.load(one, "eval")], unknown)
                raise unknown.refusal()
            store.write(key, *made)
        return key


def context_length(trainer: TrainerView) -> int | None:
    """Tokens that the model takes at once, as its config says, or its tokenizer; None when neither does."""
    factory = lookup("model_factory", trainer.config.model.type)(trainer, trainer.config.model)  # type: ignore[call-arg]
    config = factory.create_config() if hasattr(factory, "create_config") else None
    text_config = getattr(config, "text_config", None) or config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        if isinstance(length := getattr(text_config, name, None), int) and length > 0:
            return length
    length = getattr(trainer.tokenizer, "model_max_length", None)
    return int(length) if length is not None and length < 10**9 else None
