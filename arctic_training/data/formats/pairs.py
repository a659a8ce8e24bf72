"""Reads pairs of texts that belong together, with texts that do not: for training embeddings."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from arctic_training.data.formats.json_text import loads
from arctic_training.data.formats.remarks import remark, unread_columns
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError

Row = Mapping[str, Any]

ANCHORS = ("anchor", "query", "question", "sentence1", "sentence_A", "text1", "title")
POSITIVES = ("positive", "document", "passage", "answer", "sentence2", "sentence_B", "text2", "body", "abstract")
_RATINGS = ("label", "labels", "is_duplicate")
"""Columns that say whether the texts of a pair belong together: 0, -1 or false where they do not."""
_DEGREES = ("score", "similarity", "similarity_score", "relatedness_score")
"""Columns that say how similar two sentences are."""
_SENTENCES = ("sentence1", "sentence_A", "text1")
_NOT_RELATED = ("0", "0.0", "-1", "-1.0", "false")
_NEGATIVE = re.compile(r"(?:hard_)?negatives?(?:_?(\d+))?")


@dataclass(frozen=True)
class Reader:
    """Reads the texts of a row: the anchor, its positive, and ``num_negatives`` hard negatives."""

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    """Columns with a text, or a list of texts, each."""
    num_negatives: int
    rating: str | None = None
    """The column that says whether the texts belong together."""

    def __call__(self, row: Row) -> list[str]:
        """Raises `DataError` for a text that is missing or empty, for too few negatives, and for a pair of texts that
        do not belong together."""
        if self.rating is not None and str(row[self.rating]).strip().lower() in _NOT_RELATED:
            raise DataError(
                f"{self.rating} is {short_repr(row[self.rating])}: as other trainers write it, the texts do not belong "
                "together; remove the row, or the column, or name the columns of pairs by data.anchor_column and "
                "positive_column"
            )
        texts = [_text(row[name], name) for name in (self.anchor, self.positive)]
        for name in self.negatives:
            texts += [_text(value, name) for value in _list(row[name])]
        if len(texts) < 2 + self.num_negatives:
            raise DataError(
                f"{', '.join(self.negatives)}: {len(texts) - 2} negatives; expected data.num_negatives = "
                f"{self.num_negatives}"
            )
        if len(texts) > 2 + self.num_negatives:
            remark(f"has more hard negatives than data.num_negatives = {self.num_negatives}, which are not read")
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
    is_stated = anchor is not None or positive is not None  # they are pairs, whatever else there is
    rating = None if is_stated else next((name for name in _RATINGS if name in columns), None)
    anchor = anchor or next((name for name in ANCHORS if name in columns), None)
    positive = positive or next((name for name in POSITIVES if name in columns), None)
    if anchor is None or positive is None:
        raise DataError(
            f"no pairs of texts are in the columns {listed}; expected anchor and positive, query and document, "
            "question and answer, or data.anchor_column and data.positive_column"
        )
    degree = next((name for name in _DEGREES if name in columns), None)
    if degree and anchor in _SENTENCES and not is_stated:
        raise DataError(
            f"{degree} says how similar {anchor} and {positive} are, which is not read: every pair would be learned as "
            "equally similar; keep the pairs that belong together, and name their columns by data.anchor_column and "
            "positive_column"
        )
    if negatives is None:
        matches = [(int(match[1] or 0), name) for name in columns if (match := _NEGATIVE.fullmatch(name))]
        negatives = [name for _, name in sorted(matches)]
    if num_negatives and not negatives:
        raise DataError(f"data.num_negatives: no column of negatives is among {listed}; give data.negative_columns")
    unread_columns(columns, [anchor, positive, *negatives, *([rating] if rating else [])])
    count = len(negatives) if num_negatives is None else num_negatives
    return Reader(anchor, positive, tuple(negatives), count, rating)


def _list(value: object) -> list[object]:
    """Returns a list of texts, given as it is or, in a cell of a file, as JSON; of a single text a list of it."""
    if isinstance(value, str) and value.lstrip().startswith('["'):
        with suppress(ValueError, RecursionError):
            value = loads(value)
    return value if isinstance(value, list) else [value]


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} is {short_repr(value)}; expected text")
    return value
