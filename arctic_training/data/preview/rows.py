"""The rows of a batch as a person sees them: texts of tokens, which of them are targets, and other values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from arctic_training.loss.targets import IGNORE_INDEX

_TOKENS = ("input_ids", "attention_mask", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k")
_WEIGHTS = ("row_weights", "pair_weights", "completion_lengths", "draw")
_NO_FACTS = frozenset([*_TOKENS, *_WEIGHTS])
"""Keys of a batch that are shown as tokens, or that say nothing about a row."""


@dataclass(eq=False)
class PreviewText:
    """Tokens that belong together: a document, a prompt, a completion."""

    ids: npt.NDArray[np.int64]
    """The token ids, ``[tokens]``."""
    targets: npt.NDArray[np.bool_] | None = None
    """Which tokens are targets, ``[tokens]``; None where tokens are none, as in a prompt."""
    name: str = ""
    """What the text is; empty for a document, of which a packed row has several."""
    padding: int = 0
    """Tokens of padding that follow."""
    tags: Mapping[int, str] = field(default_factory=dict)
    """The labels of tokens that are no tokens themselves, such as names of classes, by position."""
    is_derived: bool = False
    """Whether it is put together from other samples, so that statistics leave it out."""


@dataclass(eq=False)
class PreviewRow:
    """One row of a batch, or a part of it that is a sample by itself."""

    texts: list[PreviewText] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    """Other values, by name: tensors, numbers, words."""

    @property
    def samples(self) -> list[list[PreviewText]]:
        """The texts of each sample: a document is a sample, and texts with names are the parts of one."""
        return [self.texts] if all(text.name for text in self.texts) else [[text] for text in self.texts]


def batch_rows(batch: object) -> list[PreviewRow]:
    """Returns the rows of any batch, by the usual names of its keys.

    ``input_ids`` with ``labels`` at them are documents, padded or packed; labels that are other tokens are targets of
    an encoder-decoder, and any others a value of each row. A mapping with ``input_ids`` in the batch is a text of each
    row under its name. Whatever else has a value for each row is a fact.
    """
    if not isinstance(batch, Mapping):
        return batch_rows({"rows": batch})
    count = next((len(value) for value in batch.values() if _has_rows(value)), 0)
    rows = [PreviewRow() for _ in range(count)]
    if "input_ids" in batch:
        rows = [PreviewRow([text]) for text in documents(batch)]
        if "cu_seq_lens_q" in batch:
            rows = [PreviewRow([text for row in rows for text in row.texts])]
        elif label_kind(batch) == "texts":
            rows = source_target_rows(batch)
    for name, value in batch.items():
        if isinstance(value, Mapping) and "input_ids" in value and len(texts := documents(value, name)) == len(rows):
            for row, text in zip(rows, texts, strict=True):
                row.texts.append(text)
    add_facts(rows, batch)
    return without_fillers(rows, batch.get("row_weights"))


def label_kind(batch: Mapping[str, Any]) -> Literal["tokens", "texts", "values", ""]:
    """Returns what the ``labels`` of a batch are: those of its tokens, other texts, values of rows; empty for none."""
    labels, ids = batch.get("labels"), batch.get("input_ids")
    if not isinstance(labels, torch.Tensor):
        return ""
    if not isinstance(ids, torch.Tensor) or labels.ndim != 2 or labels.is_floating_point():
        return "values"
    if labels.shape == ids.shape and bool(((labels == ids) | (labels == IGNORE_INDEX)).all()):
        return "tokens"
    return "texts"


def documents(batch: Mapping[str, Any], name: str = "") -> list[PreviewText]:
    """Returns the documents of a batch of tokens, padded or packed, in order.

    The padding of a packed row follows its last document.
    """
    ids = batch["input_ids"].numpy()
    targets = batch["labels"].numpy() != IGNORE_INDEX if label_kind(batch) == "tokens" else None
    if packed := "cu_seq_lens_q" in batch:
        bounds = batch["cu_seq_lens_q"].tolist()
        spans = [(0, start, end) for start, end in pairwise(bounds)]
    else:
        lengths = batch["attention_mask"].sum(1).tolist() if "attention_mask" in batch else [ids.shape[1]] * len(ids)
        spans = [(row, 0, length) for row, length in enumerate(lengths)]
    texts = []
    for row, start, end in spans:
        learned = None if targets is None else targets[row, start:end]
        texts.append(PreviewText(ids[row, start:end], learned, name, 0 if packed else ids.shape[1] - end))
    if packed and len(texts) > 1 and _is_padding(texts[-1]):
        padding = texts.pop()
        texts[-1].padding = len(padding.ids)
    return texts


def source_target_rows(batch: Mapping[str, Any]) -> list[PreviewRow]:
    """Returns the rows of an encoder-decoder's batch, each a source and its target."""
    rows = []
    sources = documents({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}, "source")
    for source, labels in zip(sources, batch["labels"].numpy(), strict=True):
        ids = labels[labels != IGNORE_INDEX]
        rows.append(
            PreviewRow([source, PreviewText(ids, np.ones(len(ids), np.bool_), "target", len(labels) - len(ids))])
        )
    return rows


def add_facts(rows: Sequence[PreviewRow], batch: Mapping[str, Any], *, without: Sequence[str] = ()) -> None:
    """Adds to ``rows`` what ``batch`` has of each besides tokens, except the keys ``without``.

    A packed row gets the values of its documents.
    """
    shown = {*_NO_FACTS, *without} | ({"labels"} if label_kind(batch) != "values" else set())
    for name, value in batch.items():
        if name in shown or not _has_rows(value):
            continue
        if len(value) == len(rows):
            for row, one in zip(rows, value, strict=True):
                row.facts[name] = one
        elif len(rows) == 1 and len(value) == len(rows[0].texts):
            rows[0].facts[name] = value


def without_fillers(rows: list[PreviewRow], weights: torch.Tensor | Sequence[float] | None) -> list[PreviewRow]:
    """Returns ``rows`` without those of weight 0 in ``weights``, ``[rows]``, which only fill a batch."""
    if weights is None or len(weights) != len(rows):
        return rows
    return [row for row, weight in zip(rows, weights, strict=True) if float(weight)]


def _is_padding(text: PreviewText) -> bool:
    """Returns whether a document at the end of a packed row is padding: one token throughout, and no target."""
    return not (text.targets is not None and text.targets.any()) and bool((text.ids == text.ids[0]).all())


def _has_rows(value: object) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, torch.Tensor) and value.ndim > 0)
