"""The section of data from sources: files, folders, the hub."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema, field_validator, model_validator

from arctic_training.config.checks.files import unwritable
from arctic_training.config.checks.problems import Problem, problems_of_keys
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.config.sections.component import COMPONENTS, parse_component
from arctic_training.config.sections.data import DataConfig, DataSourceConfig
from arctic_training.config.sections.types import HumanFloat, HumanInt
from arctic_training.data.sources.extensions import SOURCE_BY_EXTENSION, extension
from arctic_training.registry import names, numbered

_EXTENSION = re.compile(r"(\.[a-z]\w*)?(\.(gz|bz2|xz|zstd?))?$", re.IGNORECASE)
"""The extensions of a file's format and compression; a point in the name of a data set is followed by a digit."""


_ROWS = ("input_ids", "labels", "attention_mask", "position_ids", "shift_labels", "row_weights")
_DOCUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "sequence_share")
BATCH_KEYS = frozenset([*_ROWS, *_DOCUMENTS, "num_targets", "num_items_in_batch"])
"""Keys of batches of tokens that mean the same for every data factory."""

Source = Annotated[
    SerializeAsAny[DataSourceConfig],
    BeforeValidator(partial(parse_component, "data_source")),
    WithJsonSchema({COMPONENTS: ["data_source"]}),
]


def evaluation_names(sources: Sequence[DataSourceConfig]) -> list[str]:
    """Returns the name of each evaluation set in metrics: ``eval`` when there is one, else the sources' own names."""
    return evaluation_names_of([source.display_name for source in sources])


def evaluation_names_of(names: Sequence[str]) -> list[str]:
    """Returns `evaluation_names` of sources whose ``display_name`` are ``names``."""
    if len(names) == 1:
        return ["eval"]
    own = [Path(name).name for name in names]
    return numbered(re.sub(r"[^\w.-]+", "_", _EXTENSION.sub("", name)).strip("_") or "eval" for name in own)


class SourcedDataConfig(DataConfig):
    """The data of trainers that read sources."""

    default_source: ClassVar[str] = "huggingface"
    """The source of a bare ``name_or_path`` that is neither a file of a known extension nor a source's own name."""

    dl_num_workers: Annotated[int, RESUME_SAFE] = Field(default=0, ge=0)
    """Worker processes that collate batches for each rank. Reading tokens from the cache takes microseconds, so 0 is
    the fastest."""
    sources: list[Source] = Field(min_length=1)
    """Training sources. A bare string is a file, a source's name, or the ``name_or_path`` of the default source."""
    eval_sources: Annotated[list[Source], RESUME_SAFE] = []
    """Evaluation sources; each is an evaluation set of its own."""
    train_eval_split: tuple[HumanFloat, HumanFloat] = (1.0, 0.0)
    """Shares of the sources' rows to train and to evaluate on, drawn at random; they add up to 1."""
    max_length: HumanInt | None = Field(default=None, ge=2)
    """Tokens of the longest sample; by default the model's context length."""
    extra_columns: list[str] = []
    """Columns of the rows that a batch has too, under their names: numbers and booleans as tensors ``[samples]``, lists
    of K of them as ``[samples, K]``, texts as lists. In a packed row there is one value per document. The model does
    not get them."""
    num_proc: Annotated[int, RESUME_SAFE] = Field(default=16, ge=1)
    """Most processes that tokenize; never more than there are cores, and one for few rows."""
    cache_dir: Annotated[Path | None, RESUME_SAFE] = None
    """The folder of the data cache; by default ``$ARCTIC_TRAINING_CACHE`` or ``~/.cache/arctic_training``."""
    cache_fs_type: Annotated[Literal["auto", "local", "shared"], RESUME_SAFE] = "auto"
    """Whether all machines see the same ``cache_dir``: one process prepares the data then, else one on each machine.
    ``auto`` tests it with a file."""
    fail_on_missing_cache: Annotated[bool, RESUME_SAFE] = False
    """Refuse to run when the cache does not hold the prepared data."""
    max_share_without_targets: HumanFloat = Field(default=0.05, ge=0, le=1)
    """Largest share of a source's rows without labels. They are dropped; more refuse the run."""
    stream_buffer: HumanInt = Field(default=2048, ge=1)
    """Rows in the shuffle buffer of a stream, on each rank; they are packed and shuffled among themselves."""
    use_data_cache: Annotated[bool | None, RESUME_SAFE] = None
    """Deprecated: the cache is always used, and cannot be stale."""
    cache_processed_data: Annotated[bool | None, RESUME_SAFE] = None
    """Deprecated: processed data are always cached."""

    @property
    def evaluates(self) -> bool:
        return bool(self.eval_sources) or self.train_eval_split[1] > 0

    @property
    def evaluation_sets(self) -> list[str]:
        if self.eval_sources:
            return evaluation_names(self.eval_sources)
        parts = evaluation_names(self.sources) if len(self.sources) > 1 else []
        return ["eval", *(f"eval/{name}" for name in parts)]

    @property
    def endless(self) -> bool:
        return any(getattr(source, "streaming", False) for source in self.sources)

    def missing_paths(self) -> list[Problem]:
        return problems_of_keys({"cache_dir": unwritable(self.cache_dir)})

    @field_validator("sources", "eval_sources", mode="before")
    @classmethod
    def _name_types(cls, value: object) -> object:
        return [cls._typed(one) for one in value] if isinstance(value, list) else [cls._typed(value)]

    @classmethod
    def _typed(cls, section: object) -> object:
        """Returns the section of a source with its ``type``."""
        if isinstance(section, (str, Path)):
            named = {*names("data_source")} - {*SOURCE_BY_EXTENSION.values()}
            section = {"type": section} if section in named else {"name_or_path": str(section)}
        if not isinstance(section, dict) or section.get("type"):
            return section
        where = str(section.get("name_or_path", ""))
        return {**section, "type": SOURCE_BY_EXTENSION.get(extension(Path(where)), cls.default_source)}

    @field_validator("extra_columns")
    @classmethod
    def _check_extra_columns(cls, names: list[str]) -> list[str]:
        for n, name in enumerate(names):
            if name in BATCH_KEYS or name in names[:n]:
                raise ValueError(f"{name} is in every batch already; rename the column, or leave it out")
        return names

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
        sources = [*self.sources, *self.eval_sources]
        for source in sources:
            source.check_beside(sources)
        return self


class TokenDataConfig(SourcedDataConfig):
    """The data of trainers of language models: how samples of tokens become rows of a batch."""

    pack_samples: bool = False
    """Pack several samples into one row, each a document that does not attend to the others. The row has
    ``micro_batch_size`` times ``max_length`` tokens."""
    filter_samples: bool = True
    """Drop samples that are longer than ``max_length``; else they are truncated."""
    pad_to: Literal["div_length", "max_length"] = "div_length"
    """Pad rows to a multiple of ``div_length``, or to ``max_length``."""
    div_length: HumanInt | None = Field(default=None, ge=1)
    """The length of a row is a multiple of this; by default 256 for packed rows and 8 for others."""
    always_max_length: bool = False
    """Fill every packed row to the last token, splitting samples where a row ends; needs ``pack_samples``."""
    repeat_to_pack_max_length: bool = False
    """Fill every packed row with repetitions of what is in it, to measure with short data; needs ``pack_samples``."""
    fuse_positions_prob: HumanFloat = Field(default=0.0, ge=0, le=1)
    """Share of the packed rows that are one document, for training on long ones; needs ``pack_samples``."""

    @property
    def fills_rows(self) -> bool:
        """Returns whether every batch has ``micro_batch_size`` times ``max_length`` tokens, however few the samples."""
        return self.pack_samples and (
            self.pad_to == "max_length" or self.always_max_length or self.repeat_to_pack_max_length
        )

    @model_validator(mode="after")
    def _packing(self) -> "TokenDataConfig":
        for name in ("always_max_length", "repeat_to_pack_max_length", "fuse_positions_prob"):
            if getattr(self, name) and not self.pack_samples:
                raise ValueError(f"{name} says how samples are packed, and pack_samples is false")
        if self.always_max_length and self.repeat_to_pack_max_length:
            raise ValueError("always_max_length and repeat_to_pack_max_length both fill packed rows; give one of them")
        if self.extra_columns and self.fuse_positions_prob:
            raise ValueError(
                "extra_columns has a value for each document, and fuse_positions_prob makes one of several"
            )
        return self
