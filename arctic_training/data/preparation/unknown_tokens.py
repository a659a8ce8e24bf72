"""Reports all words of the data that a strict tokenizer does not know, before training. Good rows are read once."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arctic_training.data.formats.row_error import RowError
from arctic_training.data.preparation.sample_factory import SampleFactory
from arctic_training.data.preparation.samples import Indices, Samples
from arctic_training.data.tokenization.tokenize import SpanTokenizer, unknown_words
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_MAX_PLACES = 20
"""Words whose places are reported."""
_MAX_WORDS = 1_000
_BATCH_SIZE = 1_000
_NO_TOKENS = ("labels", "mask", "masks", "positions", "position_ids")
"""Endings of the names of columns that hold no tokens, or the tokens of another column."""
Encode = Callable[["Dataset"], object]
"""Returns the samples of rows, a `datasets.Dataset`."""


def strict_unk_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Returns the id of the unknown token of a strict tokenizer (saved with `refuse_unknown`); None for others."""
    strict = getattr(tokenizer, "init_kwargs", {}).get("refuse_unknown")
    return int(tokenizer.unk_token_id) if strict else None


class UnknownTokenReport:
    """The unknown words of the sources of a run."""

    def __init__(self, factory: SampleFactory) -> None:
        self.factory, self.unk_id = factory, strict_unk_id(factory.tokenizer)
        self.places: dict[str, str] = {}
        """The first place of each word; empty for words beyond the first ones."""

    def add(self, rows: "Dataset", samples: Samples, encode: Encode, place: Callable[[int], str]) -> None:
        """Adds the unknown words of ``samples``, which ``encode`` returned for ``rows``; ``place`` names a row."""
        if not len(bad := self._samples_with_unknown(samples)):
            return
        for read in (encode, self._tokenize):
            if self._collect(rows, read, place):
                return
        where = place(int(bad[0])) if len(samples) == len(rows) else ""  # rows that are tokens already
        self.places.setdefault(self.factory.tokenizer.unk_token, where)

    def _collect(self, rows: "Dataset", encode: Encode, place: Callable[[int], str]) -> bool:
        """Adds the unknown words of all rows, and returns whether there were any."""
        has_unknown = False
        for first in range(0, len(rows), _BATCH_SIZE):
            batch = np.arange(first, min(first + _BATCH_SIZE, len(rows)))
            for word in self._words(rows, batch, encode):
                has_unknown = True
                if word not in self.places:
                    shown = len(self.places) < _MAX_PLACES
                    self.places[word] = place(self._first_row(word, rows, batch, encode)) if shown else ""
        return has_unknown

    def refuse_row(self, rows: "Dataset", samples: Samples, encode: Encode) -> None:
        """Raises `RowError` for the first of ``rows`` with unknown words."""
        if not len(self._samples_with_unknown(samples)):
            return
        for read in (encode, self._tokenize):
            for row in range(len(rows)):
                if words := ", ".join(map(repr, self._words(rows, [row], read))):
                    raise RowError(row, f"not in the tokenizer's vocabulary: {words}; {self._hint}")
        raise RowError(0, f"or one after it, holds {self.factory.tokenizer.unk_token!r}; {self._hint}")

    def to_error(self) -> DataError:
        """Returns the error that names the unknown words."""
        count = len(self.places)
        words = list(self.places.items())[:_MAX_WORDS]
        named = [f"{word!r} (first in {place})" if place else repr(word) for word, place in words]
        more = [f"and {count - len(named):,} more"] if count > len(named) else []
        what = "1 token of the data is" if count == 1 else f"{count:,} tokens of the data are"
        key = "tokenizer.vocab" if self._from_recipe else "tokenizer"
        return DataError(f"{key}: {what} not in the vocabulary: {', '.join(named + more)}; {self._hint}")

    @property
    def _hint(self) -> str:
        if self._from_recipe:
            return "add them to tokenizer.vocab, or set tokenizer.strict: false"
        return "it was saved by a strict lexer, which takes no others"

    @property
    def _from_recipe(self) -> bool:
        return hasattr(self.factory.trainer.config.tokenizer, "vocab")

    def _samples_with_unknown(self, samples: Samples) -> Indices:
        """Returns the indices of samples with the unknown token."""
        columns = [
            name for name in samples.table.column_names if not name.endswith(_NO_TOKENS) and samples.is_list(name)
        ]
        if self.unk_id is None or not columns:
            return np.empty(0, np.int64)
        counts = [samples.lengths(name) - samples.count_other_than(self.unk_id, name) for name in columns]
        return np.flatnonzero(np.sum(counts, 0))

    def _words(self, rows: "Dataset", numbers: npt.NDArray[Any] | Sequence[int], encode: Encode) -> Sequence[str]:
        """Returns the unknown words of some rows."""
        with unknown_words() as words:
            encode(rows.select(numbers))
        return list(words)

    def _tokenize(self, rows: "Dataset") -> None:
        """Tokenizes the texts of rows, for a `process` that calls the tokenizer itself."""
        if texts := [cell for row in rows for cell in row.values() if isinstance(cell, str)]:
            SpanTokenizer(self.factory.tokenizer)(texts, [[]] * len(texts))

    def _first_row(self, word: str, rows: "Dataset", numbers: Indices, encode: Encode) -> int:
        """Returns the first of some rows with an unknown word, by bisection."""
        while len(numbers) > 1:
            half = len(numbers) // 2
            numbers = numbers[:half] if word in self._words(rows, numbers[:half], encode) else numbers[half:]
        return int(numbers[0])
