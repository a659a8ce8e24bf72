"""Reads pairs of texts that belong together, with texts that do not: for training embeddings."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arctic_training.data.formats.remarks import unread_columns
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError

Row = Mapping[str, Any]

ANCHORS = ("anchor", "query", "question", "sentence1", "sentence_A", "text1", "title")
POSITIVES = ("positive", "document", "passage", "answer", "sentence2", "sentence_B", "text2", "body", "abstract")
_NEGATIVE = re.compile(r"(?:hard_)?negatives?(?:_?(\d+))?")


@dataclass(frozen=True)
class Reader:
    """Reads the texts of a row: the anchor, its positive, and ``num_negatives`` hard negatives."""

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    """Columns with a text, or a list of texts, each."""
    num_negatives: int

    def __call__(self, row: Row) -> list[str]:
        """Raises `DataError` for a text that is missing or empty, and for too few negatives."""
        texts = [_text(row[name], name) for name in (self.anchor, self.positive)]
        for name in self.negatives:
            values = row[name] if isinstance(row[name], list) else [row[name]]
            texts += [_text(value, name) for value in values]
        if len(texts) < 2 + self.num_negatives:
            raise DataError(
                f"{', '.join(self.negatives)}: {len(texts) - 2} negatives; expected data.num_negatives = "
                f"{self.num_negatives}"
            )
        return texts[: 2 + self.num_negatives]


def reader(
    columns: Sequence[str],
    *,
    anchor: str | None = None,
    positive: str | None = None,
    negatives: Sequence[str] | None = None,
    num_negatives: int | None = None,
) -> Reader:
    """Returns the reader of a data set with these columns; those that are not named are found by their usual names.

    Remarks on columns that it does not read. Raises `DataError` when columns are missing.
    """
    listed = ", ".join(columns) or "(none)"
    for key, name in (("anchor_column", anchor), ("positive_column", positive)):
        if name is not None and name not in columns:
            raise DataError(f"data.{key}: there is no column {name}; there are {listed}")
    if missing := [name for name in negatives or () if name not in columns]:
        raise DataError(f"data.negative_columns: there is no column {missing[0]}; there are {listed}")
    anchor = anchor or next((name for name in ANCHORS if name in columns), None)
    positive = positive or next((name for name in POSITIVES if name in columns), None)
    if anchor is None or positive is None:
        raise DataError(
            f"no pairs of texts are in the columns {listed}; expected anchor and positive, query and document, "
            "question and answer, or data.anchor_column and data.positive_column"
        )
    if negatives is None:
        matches = [(int(match[1] or 0), name) for name in columns if (match := _NEGATIVE.fullmatch(name))]
        negatives = [name for _, name in sorted(matches)]
    if num_negatives and not negatives:
        raise DataError(f"data.num_negatives: no column of negatives is among {listed}; give data.negative_columns")
    unread_columns(columns, [anchor, positive, *negatives])
    return Reader(anchor, positive, tuple(negatives), len(negatives) if num_negatives is None else num_negatives)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} is {short_repr(value)}; expected text")
    return value
