"""The section of data that come from sources: files, folders, the hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.checks.paths import unwritable
from arctic_training.config.checks.problems import Problem
from arctic_training.config.sections.component import parse_component
from arctic_training.config.sections.data import DataConfig, DataSourceConfig
from arctic_training.config.sections.numbers import HumanFloat, HumanInt
from arctic_training.data.sources.extensions import SOURCE_BY_EXTENSION, extension
from arctic_training.registry import names, numbered

_EXTENSION = re.compile(r"(\.[a-z]\w*)?(\.(gz|bz2|xz|zstd?))?$", re.IGNORECASE)
"""Of a file's format and of its compression; behind a point in the name of a data set stands a digit."""


def _read(section: Any) -> DataSourceConfig:
    chosen = parse_component("data_source", section)
    assert isinstance(chosen, DataSourceConfig)
    return chosen


Source = Annotated[SerializeAsAny[DataSourceConfig], BeforeValidator(_read)]


def evaluation_names(sources: Sequence[DataSourceConfig]) -> list[str]:
    """What the metrics of each evaluation set are called: ``eval`` when there is one, else the sources' own names."""
    if len(sources) == 1:
        return ["eval"]
    own = [Path(str(getattr(source, "name_or_path", source.type))).name for source in sources]
    return numbered(re.sub(r"[^\w.-]+", "_", _EXTENSION.sub("", name)).strip("_") or "eval" for name in own)


class SourcedDataConfig(DataConfig):
    default_source: ClassVar[str] = "huggingface"
    """The source of a bare ``name_or_path`` that is neither a file of a known extension nor a source's own name."""

    dl_num_workers: Annotated[int, RESUME_SAFE] = Field(default=0, ge=0)
    """Processes that collate batches beside each training process. Reading tokens from the cache takes microseconds, so
    that none is the fastest."""
    sources: list[Source] = Field(min_length=1)
    """What is trained on. A bare string is a file, a source's name, or the ``name_or_path`` of the default source."""
    eval_sources: Annotated[list[Source], RESUME_SAFE] = []
    """What is evaluated on; each is an evaluation set of its own."""
    train_eval_split: tuple[HumanFloat, HumanFloat] = (1.0, 0.0)
    """Shares of the sources' rows that are trained and evaluated on, drawn at random; they add up to 1."""
    max_length: HumanInt | None = Field(default=None, ge=2)
    """Tokens of the longest sample; the model's context length when left out."""
    num_proc: Annotated[int, RESUME_SAFE] = Field(default=16, ge=1)
    """Most processes that make tokens; never more than there are cores, and one where the data are few."""
    cache_dir: Annotated[Path | None, RESUME_SAFE] = None
    """Where tokens are kept; ``$ARCTIC_TRAINING_CACHE`` or ``~/.cache/arctic_training`` when left out."""
    cache_fs_type: Annotated[Literal["auto", "local", "shared"], RESUME_SAFE] = "auto"
    """Whether all machines see the same ``cache_dir``: then one process prepares the data, else one on each machine."""
    fail_on_missing_cache: Annotated[bool, RESUME_SAFE] = False
    """Refuse to run rather than prepare the data."""
    max_share_without_targets: HumanFloat = Field(default=0.05, ge=0, le=1)
    """Refuse the run when more than this share of a source's rows has nothing to train on; fewer are left out."""
    stream_buffer: HumanInt = Field(default=2048, ge=1)
    """Rows of a stream that each rank reads ahead, and packs and shuffles among themselves."""
    use_data_cache: Annotated[bool | None, RESUME_SAFE] = None
    """Deprecated: the cache is always used, and cannot be stale."""
    cache_processed_data: Annotated[bool | None, RESUME_SAFE] = None
    """Deprecated: processed data are always cached."""

    @property
    def evaluates(self) -> bool:
        return bool(self.eval_sources) or self.train_eval_split[1] > 0

    @property
    def endless(self) -> bool:
        return any(getattr(source, "streaming", False) for source in self.sources)

    def missing_paths(self) -> list[Problem]:
        told = unwritable(self.cache_dir)
        return [Problem(("cache_dir",), told)] if told else []

    @field_validator("sources", "eval_sources", mode="before")
    @classmethod
    def _name_types(cls, value: Any) -> Any:
        return [cls._typed(one) for one in value] if isinstance(value, list) else [cls._typed(value)]

    @classmethod
    def _typed(cls, section: Any) -> Any:
        """The section of a source, with its ``type``."""
        if isinstance(section, (str, Path)):
            named = {*names("data_source")} - {*SOURCE_BY_EXTENSION.values()}
            section = {"type": section} if section in named else {"name_or_path": str(section)}
        if not isinstance(section, dict) or section.get("type"):
            return section
        where = str(section.get("name_or_path", ""))
        return {**section, "type": SOURCE_BY_EXTENSION.get(extension(Path(where)), cls.default_source)}

    @model_validator(mode="after")
    def _shares(self) -> "SourcedDataConfig":
        train, evaluation = self.train_eval_split
        if train <= 0 or evaluation < 0 or abs(train + evaluation - 1) > 1e-6:
            raise ValueError(f"train_eval_split: {train:g} and {evaluation:g} must be shares that add up to 1")
        if evaluation and self.eval_sources:
            raise ValueError("train_eval_split and eval_sources both say what to evaluate on; give one of them")
        weights = [source.weight is not None for source in self.sources]
        if any(weights) and not all(weights):
            raise ValueError("sources: all of them have a weight, or none has")
        return self


class TokenDataConfig(SourcedDataConfig):
    """How samples of tokens become rows of a batch."""

    pack_samples: bool = False
    """Put several samples into one row, each a document that does not see the others. With ``micro_batch_size`` above 1
    the row is that many times ``max_length`` long."""
    filter_samples: bool = True
    """Leave out samples that are longer than ``max_length``; else they are cut off there."""
    pad_to: Literal["div_length", "max_length"] = "div_length"
    """Whether rows are as long as what is in them, rounded up to a multiple of ``div_length``, or as ``max_length``."""
    div_length: HumanInt | None = Field(default=None, ge=1)
    """What the length of a row is a multiple of; when left out 256 for packed rows and 8 for others."""
    always_max_length: bool = False
    """Fill every packed row to the last token, cutting samples where a row ends; needs ``pack_samples``."""
    repeat_to_pack_max_length: bool = False
    """Fill every packed row with repetitions of what is in it, to measure with short data; needs ``pack_samples``."""
    fuse_positions_prob: HumanFloat = Field(default=0.0, ge=0, le=1)
    """Share of the packed rows whose samples become one document, for training on long ones; needs ``pack_samples``."""

    @model_validator(mode="after")
    def _packing(self) -> "TokenDataConfig":
        for name in ("always_max_length", "repeat_to_pack_max_length", "fuse_positions_prob"):
            if getattr(self, name) and not self.pack_samples:
                raise ValueError(f"{name} says how samples are packed, and pack_samples is false")
        if self.always_max_length and self.repeat_to_pack_max_length:
            raise ValueError("always_max_length and repeat_to_pack_max_length both fill packed rows; give one of them")
        return self
