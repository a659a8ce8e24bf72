"""Data for sequence-to-sequence models: sources, each with its target."""

import functools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.tokenizer import is_lexer
from arctic_training.config.sections.types import HumanInt
from arctic_training.data.batching import collate
from arctic_training.data.batching.chunking import TruncatedPairs
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.prompt import PromptEncoder
from arctic_training.data.factories.sourced import SourcedDataFactory, model_config
from arctic_training.data.formats import chat, remarks
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.row_error import NothingLeft, RowError
from arctic_training.data.preparation.row_encoder import Columns, RowEncoder
from arctic_training.data.preparation.samples import SampleList, Samples
from arctic_training.data.preview.rows import PreviewRow, add_facts, source_target_rows
from arctic_training.data.tokenization.tokenize import Tokens
from arctic_training.errors.short_repr import short_repr
from arctic_training.generation.special_tokens import get_pad_token_id
from arctic_training.logging import logger
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


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

    A sample is the source, ``input_ids``, and the target with its end token, ``answer_ids``. A batch of an
    encoder-decoder has ``input_ids`` and ``attention_mask``, int64 ``[B, S]``, of the sources, and ``labels``, int64
    ``[B, T]``: the targets, where -100 is padding. A batch of a decoder-only model is that of `collate.pad`: rows of
    source and target, of which the targets have labels.
    """

    name = "seq2seq"
    counts = "labels"
    config_type: ClassVar[type[ComponentConfig]] = Seq2SeqDataConfig
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
        if getattr(self.trainer.config.model, "task", None) == "causal_lm":
            return False  # of an encoder-decoder the decoder alone
        return bool(getattr(model_config(self.trainer), "is_encoder_decoder", False))

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
        return self.map_rows(dataset, RowEncoder(chat.reader(dataset.column_names), partial(_encode_samples, encoder)))

    def postprocess_samples(self, samples: Samples) -> SampleList:
        """Drops or truncates samples that are too long, and logs how many. Raises `NothingLeft`."""
        sources, targets = samples.lengths("input_ids"), samples.lengths("answer_ids")
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
        return {**sample, "labels": np.full_like(sample["answer_ids"], IGNORE_INDEX)}

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        """Returns the batch of an encoder-decoder, or of a decoder-only model; see the class."""
        multiple, pad_token = self.config.div_length, get_pad_token_id(self.tokenizer)
        targets = [sample.get("labels", sample["answer_ids"]) for sample in samples]
        if not self.encoder_decoder:
            rows = [_as_one_row(sample, target) for sample, target in zip(samples, targets, strict=True)]
            return collate.pad(rows, pad_token=pad_token, multiple=multiple, positions=self.max_length)
        sources = [sample["input_ids"] for sample in samples]
        input_ids, mask = collate.pad_rows(sources, pad_token, multiple=multiple, longest=self.max_source_length)
        labels, _ = collate.pad_rows(targets, IGNORE_INDEX, multiple=multiple, longest=self.max_length)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}

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
        "input_ids": np.concatenate([source, sample["answer_ids"]]),
        "labels": np.concatenate([np.full_like(source, IGNORE_INDEX), target]),
    }


class SourceTargetEncoder(PromptEncoder):
    """Encodes sources and targets apart: as text, or by the chat template if the tokenizer has one.

    For an encoder-decoder, texts get the special tokens of the tokenizer, which it may have other ones of for targets.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, encoder_decoder: bool, **arguments: Any) -> None:
        """``arguments`` are those of `SampleEncoder`."""
        super().__init__(tokenizer, **arguments)
        self.encoder_decoder = encoder_decoder

    def encode_pairs(self, samples: Sequence[Sample], first: int) -> list[tuple[Tokens, Tokens]]:
        """Returns the token ids of each source and of its target, int32 ``[length]``; both are empty without a target.

        Raises `RowError`, counting from ``first``, for a sample without a source, a chat of several answers without a
        chat template, and a chat that the template refuses.
        """
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        texts: dict[int, tuple[str, str]] = {}
        chats = [Sample()] * len(samples)
        for n, sample in enumerate(samples):
            if sample.messages and not any(turn["role"] == "assistant" for turn in sample.messages):
                continue  # its answer is an empty cell
            if sample.messages and has_template:
                chats[n] = sample
            elif sample != Sample():
                texts[n] = _read_texts(sample, first + n)
        nothing = np.empty(0, np.int32)
        pairs = super().encode_pairs(chats, first) if any(chat.messages for chat in chats) else []
        pairs = pairs or [(nothing, nothing)] * len(samples)
        for n, pair in zip(texts, self._encode_texts(list(texts.values())), strict=True):
            pairs[n] = pair if texts[n][1].strip() else pairs[n]
        return pairs

    def _encode_texts(self, texts: list[tuple[str, str]]) -> list[tuple[Tokens, Tokens]]:
        if not self.encoder_decoder:
            return [self._encode_apart(Sample(prompt=source, completion=target)) for source, target in texts]
        if not texts:
            return []
        sources, targets, end = [one for one, _ in texts], [one for _, one in texts], self.tokenizer.eos_token_id
        if is_lexer(self.tokenizer):
            encoded = [ids for ids, _ in self._tokenize(targets, [[]] * len(targets), add_special_tokens=True)]
        else:
            arguments = {"return_attention_mask": False, **self._tokenize.arguments}
            encoded = [np.array(ids, np.int32) for ids in self.tokenizer(text_target=targets, **arguments)["input_ids"]]
        ended = [ids if end is None or end in ids else np.append(ids, np.int32(end)) for ids in encoded]
        tokens = self._tokenize(sources, [[]] * len(sources), add_special_tokens=True)
        return [(source, target) for (source, _), target in zip(tokens, ended, strict=True)]


def _read_texts(sample: Sample, row: int) -> tuple[str, str]:
    """Returns the texts of source and target. Raises `RowError` for a chat of more than a question and its answer."""
    source, target = sample.prompt, sample.completion
    if sample.messages:
        roles = [turn["role"] for turn in sample.messages]
        if roles != ["user", "assistant"] or sample.tools:
            why = "the tokenizer has no chat template, so that a row can be one source and its target only"
            raise RowError(row, f"{why}; it has {', '.join(roles)}{' and tools' if sample.tools else ''}")
        source, target = (turn["content"] for turn in sample.messages)
    if not (isinstance(source, str) and isinstance(target, str)):
        raise RowError(row, f"source and target are {short_repr(source)} and {short_repr(target)}; expected text")
    if not source.strip():
        raise RowError(row, "there is no source before the target")
    return source, target


def _encode_samples(encoder: SourceTargetEncoder, samples: list[Sample], first: int) -> Columns:
    """Returns ``input_ids`` and ``answer_ids``. Raises `RowError`."""
    sources, targets = zip(*encoder.encode_pairs(samples, first), strict=True)
    return {"input_ids": sources, "answer_ids": targets}
