"""The preview of a run's data: rows as they are trained on, and the statistics of every set."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol

from arctic_training.data.batching.loader import Batch, Loader
from arctic_training.data.formats.remarks import Remarks, counts
from arctic_training.data.preview.facts import as_numbers, write_value
from arctic_training.data.preview.rows import PreviewRow, PreviewText
from arctic_training.data.preview.statistics import SetStatistics
from arctic_training.data.preview.tokens import token_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STREAM_ROWS = 1_000
"""Rows of a stream that statistics are made of."""


class ShowsRows(Protocol):
    """The part of a data factory that a preview needs."""

    row_counts: Mapping[str, Remarks]

    def show(self, batch: Batch) -> list[PreviewRow]:
        """Returns the rows of a batch."""


@dataclass
class SetPreview:
    """One set: the training data, or those of an evaluation."""

    rows: list[PreviewRow]
    """The first rows of the first epoch."""
    statistics: SetStatistics
    remarks: Mapping[str, Mapping[str, int]]
    """What was counted while the samples were prepared, by kind and name."""
    is_endless: bool
    """Whether it is a stream, of which only the first rows are in the statistics."""


def preview_set(
    factory: ShowsRows,
    loader: Loader,
    name: str,
    tokenizer: "PreTrainedTokenizerBase | None",
    count: int,
    watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> SetPreview:
    """Reads the first epoch of a set as training would. ``count`` is the number of rows to keep.

    ``watch`` passes the batches on, and may show how far they are. Raises `SampleError` for a batch that cannot be
    made.
    """
    is_endless = not len(loader)
    rows = chain.from_iterable(map(factory.show, watch(loader)))
    statistics, shown = SetStatistics(tokenizer), list[PreviewRow]()
    for row in islice(rows, max(count, _STREAM_ROWS)) if is_endless else rows:
        if len(shown) < count:
            shown.append(row)
        statistics.add(row)
    remarks: dict[str, dict[str, int]] = {}
    for (kind, about), number in counts(factory.row_counts.get(name, {})).items():
        remarks.setdefault(kind, {})[about] = number
    return SetPreview(shown, statistics, remarks, is_endless)


def to_json(sets: Mapping[str, SetPreview], tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
    """Returns the previews of sets as values of JSON."""
    seen = sets["train"].statistics.occurrences.keys() if "train" in sets else set[int]()
    described = {}
    for name, one in sets.items():
        described[name] = {"endless": one.is_endless, **one.statistics.summary(), "preparation": one.remarks}
        if name != "train":
            described[name]["also_in_train"] = len(seen & one.statistics.occurrences.keys())
        described[name]["first_rows"] = [_row_to_json(row, tokenizer) for row in one.rows]
    return described


def _row_to_json(row: PreviewRow, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
    return {
        "texts": [_text_to_json(text, tokenizer) for text in row.texts],
        "values": {name: _value_to_json(value) for name, value in row.facts.items()},
    }


def _text_to_json(text: PreviewText, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
    tokens, ids = [], text.ids.tolist()
    for n, (token, decoded) in enumerate(zip(ids, token_texts(tokenizer, ids), strict=True)):
        tokens.append({"id": token, "text": decoded, "target": text.targets is not None and bool(text.targets[n])})
        if n in text.tags:
            tokens[-1]["label"] = text.tags[n]
    return {"name": text.name, "tokens": tokens, "padding": text.padding}


def _value_to_json(value: object) -> object:
    numbers = as_numbers(value)
    return write_value(value) if numbers is None or numbers.size > 64 else numbers.tolist()
