"""Data for sequence-to-sequence models: sources, each with its target."""

import functools
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from arctic_training.config.sections.types import HumanInt
from arctic_training.data.batching import collate
from arctic_training.data.batching.chunking import TruncatedPairs
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.model_facts import has_encoder
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.formats import chat, remarks
from arctic_training.data.formats.row_error import NothingLeft
from arctic_training.data.preparation.prompt_encoder import SourceTargetEncoder, encode_prompts
from arctic_training.data.preparation.row_encoder import RowEncoder
from arctic_training.data.preparation.samples import SampleList, Samples
from arctic_training.data.preview.rows import PreviewRow, add_facts, source_target_rows
from arctic_training.generation.special_tokens import get_pad_token_id
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset


class Seq2SeqDataConfig(SourcedDataConfig):
    """The data of the seq2seq trainer."""

    max_length: HumanInt | None = Field(default=None, ge=2)
    """Tokens of the longest target, and in a decoder-only model of source and target together; by default the model's
    context length."""
    max_source_length: HumanInt | None = Field(default=None, ge=1)
    """Tokens of the longest source; by default ``max_length``."""
    filter_samples: bool = True
    """Drop samples that are too long. Else a target loses its end. A source keeps its first tokens and the last one,
    its end token, for an encoder, and its last tokens in a decoder-only model."""
    div_length: HumanInt = Field(default=8, ge=1)
    """Rows are padded to a multiple of this, but not beyond the maximum lengths."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template, if the tokenizer has one, such as ``{enable_thinking: false}``."""


class Seq2SeqDataFactory(SourcedDataFactory[Seq2SeqDataConfig]):
    """Encodes prompts and completions, or chats whose last answer is the target, as sources and targets.

    A sample is the source, ``input_ids``, and the target with its end token, ``completion_ids``. A batch of an
    encoder-decoder has ``input_ids`` and ``attention_mask``, int64 ``[B, S]``, of the sources, and ``labels``, int64
    ``[B, T]``: the targets, where -100 is padding. A batch of a decoder-only model is that of `collate.pad`: rows of
    source and target, of which the targets have labels.
    """

    name = "seq2seq"
    counts = "labels"
    not_in_cache_key = SourcedDataFactory.not_in_cache_key | {
        "max_length",
        "max_source_length",
        "filter_samples",
        "div_length",
        "stream_buffer",
    }
    _has_warned = False

    @functools.cached_property
    def encoder_decoder(self) -> bool:
        """Returns whether the model reads the source with an encoder."""
        return has_encoder(self.trainer)

    @property
    def max_source_length(self) -> int:
        """Tokens of the longest source."""
        return self.config.max_source_length or self.max_length

    def sample_settings(self) -> dict[str, Any]:
        return {**super().sample_settings(), "encoder_decoder": self.encoder_decoder}

    def process(self, dataset: "Dataset") -> "Dataset":
        encoder = SourceTargetEncoder(
            self.tokenizer,
            encoder_decoder=self.encoder_decoder,
            tokenize_arguments=self.tokenize_arguments,
            template_arguments=self.config.chat_template_kwargs,
        )
        return self.map_rows(dataset, RowEncoder(chat.reader(dataset.column_names), partial(encode_prompts, encoder)))

    def postprocess_samples(self, samples: Samples) -> SampleList:
        """Drops or truncates samples that are too long, and logs how many. Raises `NothingLeft`."""
        sources, targets = samples.lengths("input_ids"), samples.lengths("completion_ids")
        if self.encoder_decoder:
            kept_targets = np.minimum(targets, self.max_length)
            kept_sources = np.minimum(sources, self.max_source_length)
        else:
            # a target needs one token before it
            kept_targets = np.minimum(targets, self.max_length - 1)
            kept_sources = np.minimum(sources, np.minimum(self.max_source_length, self.max_length - kept_targets))
        shorter = (kept_sources < sources) | (kept_targets < targets)
        if not (count := int(shorter.sum())):
            return samples
        limits = f"data.max_length = {self.max_length} and max_source_length = {self.max_source_length}"
        why = f"{count} of {len(samples)} samples are longer than {limits} allow: {int((kept_sources < sources).sum())}"
        why += f" sources of up to {sources.max()} tokens, and {int((kept_targets < targets).sum())} targets of up to "
        why += f"{targets.max()}"
        if self.config.filter_samples and count == len(samples):
            raise NothingLeft(f"{why}; nothing is left; raise them, or truncate samples with filter_samples: false")
        action = remarks.DROPPED if self.config.filter_samples else remarks.TRUNCATED
        remarks.count(action, f"samples longer than {limits} allow", count)
        logger.log("INFO" if self._has_warned else "WARNING", f"{why}; they are {action}")
        self._has_warned = True
        if self.config.filter_samples:
            return samples.select(np.flatnonzero(~shorter))
        end_tokens = np.minimum(kept_sources, 1) if self.encoder_decoder else kept_sources
        return TruncatedPairs(samples, kept_sources - end_tokens, end_tokens, kept_targets)

    def make_padding_sample(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**sample, "labels": np.full_like(sample["completion_ids"], IGNORE_INDEX)}

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        """Returns the batch of an encoder-decoder, or of a decoder-only model; see the class."""
        multiple, pad_token = self.config.div_length, get_pad_token_id(self.tokenizer)
        targets = [sample.get("labels", sample["completion_ids"]) for sample in samples]
        if not self.encoder_decoder:
            rows = [_as_one_row(sample, target) for sample, target in zip(samples, targets, strict=True)]
            return collate.pad(rows, pad_token=pad_token, multiple=multiple, positions=self.max_length)
        return collate.pad_pairs(
            [sample["input_ids"] for sample in samples],
            targets,
            pad_token=pad_token,
            multiple=multiple,
            longest_source=self.max_source_length,
            longest_target=self.max_length,
        )

    def show(self, batch: Batch) -> list[PreviewRow]:
        if not self.encoder_decoder:
            return super().show(batch)
        rows = source_target_rows(batch)
        add_facts(rows, batch, without=("labels",))
        return rows


def _as_one_row(sample: Mapping[str, Any], target: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Returns source and target of a decoder-only model as one sample; only the target has labels."""
    source = sample["input_ids"]
    return {
        "input_ids": np.concatenate([source, sample["completion_ids"]]),
        "labels": np.concatenate([np.full_like(source, IGNORE_INDEX), target]),
    }
