"""Data for classifiers: texts with a label each, or words with a label each."""

import functools
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from arctic_training.config.sections.types import HumanInt
from arctic_training.data.batching.collate import pad_rows
from arctic_training.data.batching.loader import Batch
from arctic_training.data.factories.config import SourcedDataConfig
from arctic_training.data.factories.model_facts import model_config
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.data.formats.labels import LabelReader, read_number
from arctic_training.data.formats.remarks import TRUNCATED, count, remark, unread_columns
from arctic_training.data.preparation.row_encoder import Columns, RowEncoder
from arctic_training.data.preparation.samples import Sample
from arctic_training.data.preview.rows import PreviewRow, add_facts, documents
from arctic_training.data.sources.arrow_rows import Row
from arctic_training.data.tokenization.tokenize import SpanTokenizer, Tokens
from arctic_training.data.tokenization.word_labels import label_words
from arctic_training.errors.types import DataError
from arctic_training.generation.special_tokens import get_pad_token_id
from arctic_training.loss.targets import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset


class LabeledTextDataConfig(SourcedDataConfig):
    """The data of the classifier."""

    text_column: str | None = None
    """Column of the texts; by default ``text``, or ``tokens``, lists of words, for a model that labels tokens."""
    label_column: str | None = None
    """Column of the labels, names or numbers from 0, or for ``model.task: regression`` any numbers; by default
    ``label``, or ``tags``, a list for each text."""
    multi_label: bool = False
    """A text may have several labels, or none: its label is a list of them."""
    div_length: HumanInt = Field(default=8, ge=1)
    """The length of a row is a multiple of this."""


class LabeledTextDataFactory(SourcedDataFactory[LabeledTextDataConfig]):
    """Encodes texts with labels. The names of the labels are those of the model (``model.labels``).

    A text is truncated at ``max_length``. Of a word that becomes several tokens the first has the label. A sample is
    ``input_ids`` with ``labels``. A batch has ``input_ids`` and ``attention_mask``, int64 ``[B, T]``, and ``labels``:
    int64 ``[B]``, for a model that labels tokens ``[B, T]``, with ``multi_label`` float32 ``[B, labels]``, 1 or 0, and
    for a regression float32 ``[B]``; -100 is no label. ``num_items_in_batch`` counts the labels that are not -100.
    """

    name = "labeled_text"
    counts = "labels"
    not_in_cache_key = SourcedDataFactory.not_in_cache_key | {"div_length"}

    @functools.cached_property
    def labels_tokens(self) -> bool:
        """Returns whether each token of a text may have a label. Raises `DataError` where they are to have several."""
        labels_tokens = getattr(self.trainer.config.model, "task", "") == "token_classification"
        if labels_tokens and self.config.multi_label:
            raise DataError("data.multi_label: a token has one label; remove it")
        return labels_tokens

    @functools.cached_property
    def is_regression(self) -> bool:
        """Returns whether the label of a text is a number to predict. Raises `DataError` where it may have several."""
        is_regression = getattr(self.trainer.config.model, "task", "") == "regression"
        if is_regression and self.config.multi_label:
            raise DataError("data.multi_label: with model.task: regression a text has one number; remove it")
        return is_regression

    @functools.cached_property
    def label_names(self) -> list[str]:
        """The names of the model's labels. Raises `DataError` for a model without."""
        names = getattr(model_config(self.trainer), "id2label", None)
        if not names:
            raise DataError("data.type: labeled_text needs a model with labels; give model.labels")
        return [str(name) for _, name in sorted(names.items())]

    def sample_settings(self) -> dict[str, Any]:
        kinds = {"labels_tokens": self.labels_tokens, "is_regression": self.is_regression}
        return {**super().sample_settings(), "labels": self.label_names, **kinds}

    def process(self, dataset: "Dataset") -> "Dataset":
        words = self.labels_tokens
        text = self.config.text_column or ("tokens" if words else "text")
        label = self.config.label_column or ("tags" if words else "label")
        for key, name in (("text_column", text), ("label_column", label)):
            if name not in dataset.column_names:
                raise DataError(f"data.{key}: no column {name}; there are {', '.join(dataset.column_names)}")
        unread_columns(dataset.column_names, [text, label])
        labels = LabelReader(self.label_names, dataset.features[label])
        tokenize = SpanTokenizer(self.tokenizer, self.tokenize_arguments)
        rows = dataset.select_columns([text, label])
        if words:
            read_words = partial(_read_words, text, label, labels)
            return self.map_rows(rows, RowEncoder(read_words, partial(_encode_words, tokenize, self.max_length)))
        read_text = partial(_read_text, text, label, None if self.is_regression else labels, self.config.multi_label)
        dtype = np.float32 if self.is_regression else np.int32
        return self.map_rows(rows, RowEncoder(read_text, partial(_encode_texts, tokenize, self.max_length, dtype)))

    def no_target(self, sample: Sample) -> str:
        return "have no text or no label"

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        pad = partial(pad_rows, multiple=self.config.div_length)
        ids, mask = pad([sample["input_ids"] for sample in samples], get_pad_token_id(self.tokenizer))
        tags = [sample["labels"] for sample in samples]
        dtype = np.float32 if self.is_regression else np.int64
        labels = pad(tags, IGNORE_INDEX)[0] if self.labels_tokens else torch.from_numpy(np.array(tags, dtype))
        if not self.labels_tokens:
            labels = labels.float() if self.config.multi_label else labels[:, 0]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def show(self, batch: Batch) -> list[PreviewRow]:
        rows = [PreviewRow([text]) for text in documents({**batch, "labels": None})]
        add_facts(rows, batch, without=("labels",))
        for row, labels in zip(rows, batch["labels"].numpy(), strict=True):
            if self.labels_tokens:
                (text,) = row.texts
                text.targets = labels[: len(text.ids)] != IGNORE_INDEX
                text.tags = {int(n): self.label_names[labels[n]] for n in np.flatnonzero(text.targets)}
            elif self.is_regression:
                row.facts["label"] = str(labels)
            else:
                numbers = np.flatnonzero(labels == 1) if self.config.multi_label else np.atleast_1d(labels)
                row.facts["label"] = ", ".join(self.label_names[n] for n in numbers if n != IGNORE_INDEX)
        return rows


def _read_text(
    text: str, label: str, labels: LabelReader | None, multi_label: bool, row: Row
) -> tuple[str, Sequence[float]]:
    """Returns the text of a row and its labels, -100 for a row without; they are any numbers where ``labels`` is None.

    Raises `DataError`.
    """
    value = row[text]
    if not value or row[label] is None or (labels is None and row[label] == ""):
        return "", [IGNORE_INDEX]
    if not isinstance(value, str):
        raise DataError(f"{text} is {value!r}, which is no text")
    if labels is None:
        return value, [read_number(row[label])]
    return value, labels.several(row[label]) if multi_label else [labels(row[label])]


def _read_words(text: str, label: str, labels: LabelReader, row: Row) -> tuple[list[str], list[int]]:
    """Returns the words of a row and their labels. Raises `DataError`."""
    words, tags = row[text] or [], row[label] or []
    if not isinstance(words, Sequence) or isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{text} is no list of words")
    if not isinstance(tags, Sequence) or isinstance(tags, str) or len(tags) != len(words):
        count = len(tags) if isinstance(tags, Sequence) and not isinstance(tags, str) else "no list of"
        raise DataError(f"{text} has {len(words)} words, and {label} {count} labels; each word has one")
    return list(words), [IGNORE_INDEX if tag in (None, IGNORE_INDEX) else labels(tag) for tag in tags]


def _encode_texts(
    tokenize: SpanTokenizer,
    max_length: int,
    dtype: type[np.number],
    rows: list[tuple[str, Sequence[float]]],
    first: int,
) -> Columns:
    """Returns ``input_ids``, and ``labels`` of a dtype."""
    encoded = tokenize([text for text, _ in rows], [[]] * len(rows), add_special_tokens=True)
    keep = _Truncation(tokenize, max_length)
    ids = [tokens[keep(len(tokens))] for tokens, _ in encoded]
    return {"input_ids": ids, "labels": [np.array(labels, dtype) for _, labels in rows]}


def _encode_words(
    tokenize: SpanTokenizer, max_length: int, rows: list[tuple[list[str], list[int]]], first: int
) -> Columns:
    """Returns ``input_ids`` and ``labels``, one of each token. Raises `DataError`."""
    keep = _Truncation(tokenize, max_length)
    columns: dict[str, list[Tokens]] = {"input_ids": [], "labels": []}
    for tokens, labels in label_words(tokenize.tokenizer, rows, tokenize.arguments):
        kept = keep(len(tokens))
        columns["input_ids"].append(tokens[kept])
        columns["labels"].append(labels[kept])
    return columns


class _Truncation:
    """Chooses the tokens that a text keeps: the first ones, and those that the tokenizer puts behind every text."""

    def __init__(self, tokenize: SpanTokenizer, max_length: int) -> None:
        ((alone, _),) = tokenize(["a"], [[]])
        ((framed, _),) = tokenize(["a"], [[]], add_special_tokens=True)
        starts = range(len(framed) - len(alone) + 1)
        before = next((n for n in starts if np.array_equal(framed[n : n + len(alone)], alone)), 0)
        self.behind, self.max_length = len(framed) - len(alone) - before, max_length

    def __call__(self, length: int) -> slice | npt.NDArray[np.int64]:
        """Returns the indices of the tokens to keep, of ``length`` of them."""
        if length <= self.max_length:
            return slice(None)
        remark("has texts that are longer than data.max_length, and truncated")
        count(TRUNCATED, f"texts longer than max_length = {self.max_length}")
        kept: npt.NDArray[np.int64] = np.r_[: self.max_length - self.behind, length - self.behind : length]
        return kept
