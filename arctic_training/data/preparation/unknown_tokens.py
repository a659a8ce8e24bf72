"""What a strict tokenizer does not know: all of it is told before training. Good rows are not looked at twice."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from arctic_training.data.formats.row_error import RowError
from arctic_training.data.preparation.samples import Indices, Samples
from arctic_training.data.tokenization.tokenize import SpanTokenizer, unknown_words
from arctic_training.errors.types import DataError

_SHOWN = 20
"""Words whose places are told."""
_TOLD = 1_000
_AT_ONCE = 1_000
_NO_TOKENS = ("labels", "mask", "masks", "positions", "position_ids")
"""How the names of columns end whose numbers are no tokens of a text, or those of another column."""
Process = Callable[[Any], Any]
"""Makes samples of rows, a `datasets.Dataset`."""


def strict_unk_id(tokenizer: Any) -> int | None:
    """The token for what is unknown, when no sample may hold it; so a lexer is saved (`refuse_unknown`)."""
    wanted = getattr(tokenizer, "init_kwargs", {}).get("refuse_unknown")
    return int(tokenizer.unk_token_id) if wanted else None


class UnknownTokenReport:
    """What was met in the sources of a run."""

    def __init__(self, factory: Any) -> None:
        self.factory, self.token = factory, strict_unk_id(factory.tokenizer)
        self.places: dict[str, str] = {}
        """Where each word was met first; empty of those that are not shown."""

    def look(self, rows: Any, samples: Samples, process: Process, place: Callable[[int], str]) -> None:
        """Find it in ``samples``, which ``process`` made of ``rows``; ``place`` says which row of its source one is."""
        if not len(bad := self._bad(samples)):
            return
        for read in (process, self._read):
            if self._collect(rows, read, place):
                return
        where = place(int(bad[0])) if len(samples) == len(rows) else ""  # rows that are tokens already
        self.places.setdefault(self.factory.tokenizer.unk_token, where)

    def _collect(self, rows: Any, process: Process, place: Callable[[int], str]) -> bool:
        """Whether there was any word. Of all rows: which one a sample is of, only its maker knows."""
        met = False
        for first in range(0, len(rows), _AT_ONCE):
            some = np.arange(first, min(first + _AT_ONCE, len(rows)))
            for word in self._words(rows, some, process):
                met = True
                if word not in self.places:
                    shown = len(self.places) < _SHOWN
                    self.places[word] = place(self._first(word, rows, some, process)) if shown else ""
        return met

    def refuse_row(self, rows: Any, samples: Samples, process: Process) -> None:
        """Raises `RowError` for the first of ``rows`` that holds any."""
        if not len(self._bad(samples)):
            return
        for read in (process, self._read):
            for row in range(len(rows)):
                if words := ", ".join(map(repr, self._words(rows, [row], read))):
                    raise RowError(row, f"not in the tokenizer's vocabulary: {words}; {self._mend}")
        raise RowError(0, f"or one after it, holds {self.factory.tokenizer.unk_token!r}; {self._mend}")

    def refusal(self) -> DataError:
        count = len(self.places)
        words = list(self.places.items())[:_TOLD]
        told = [f"{word!r} (first in {place})" if place else repr(word) for word, place in words]
        more = [f"and {count - len(told):,} more"] * (count > len(told))
        what = "1 token of the data is" if count == 1 else f"{count:,} tokens of the data are"
        return DataError(f"{self._key}: {what} not in the vocabulary: {', '.join(told + more)}; {self._mend}")

    @property
    def _key(self) -> str:
        return "tokenizer.vocab" if self._from_recipe else "tokenizer"

    @property
    def _mend(self) -> str:
        if self._from_recipe:
            return "add them to tokenizer.vocab, or set tokenizer.strict: false"
        return "it was saved by a strict lexer, which takes no others"

    @property
    def _from_recipe(self) -> bool:
        return hasattr(self.factory.trainer.config.tokenizer, "vocab")

    def _bad(self, samples: Samples) -> Indices:
        """Which samples hold any."""
        columns = [
            name for name in samples.table.column_names if not name.endswith(_NO_TOKENS) and samples.is_list(name)
        ]
        if self.token is None or not columns:
            return np.empty(0, np.int64)
        held = [samples.lengths(name) - samples.counts(name, self.token) for name in columns]
        return np.flatnonzero(np.sum(held, 0))

    def _words(self, rows: Any, numbers: npt.NDArray[Any] | Sequence[int], process: Process) -> Sequence[str]:
        with unknown_words() as met:
            process(rows.select(numbers))
        return list(met)

    def _read(self, rows: Any) -> None:
        """For a maker of samples that asks the tokenizer itself: the texts that its rows have."""
        if texts := [cell for row in rows for cell in row.values() if isinstance(cell, str)]:
            SpanTokenizer(self.factory.tokenizer)(texts, [[]] * len(texts))

    def _first(self, word: str, rows: Any, numbers: Indices, process: Process) -> int:
        while len(numbers) > 1:
            half = len(numbers) // 2
            numbers = numbers[:half] if word in self._words(rows, numbers[:half], process) else numbers[half:]
        return int(numbers[0])
