"""Statistics of the rows of a set: lengths, targets, duplicates, and what tends to be wrong with them."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from arctic_training.data.preview.facts import FactStatistics
from arctic_training.data.preview.rows import PreviewRow, PreviewText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BINS = 10
_MAX_EXAMPLES = 1_000
"""Repeated samples whose tokens are kept."""


class TextStatistics:
    """Statistics of the texts of one name."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.targets: int | None = None

    def add(self, text: PreviewText) -> None:
        """Adds a text."""
        self.lengths.append(len(text.ids))
        if text.targets is not None:
            self.targets = (self.targets or 0) + int(np.count_nonzero(text.targets))

    def summary(self) -> dict[str, Any]:
        """Returns the statistics as values of JSON; lengths in tokens, and bins as first length, last one and count."""
        lengths = np.array(self.lengths, np.int64)
        return {
            "tokens": int(lengths.sum()),
            "targets": self.targets,
            "shortest": int(lengths.min()),
            "mean": round(float(lengths.mean()), 1),
            "longest": int(lengths.max()),
            "histogram": histogram(lengths),
        }


class SetStatistics:
    """Statistics of a set, to which the rows of its batches are added."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        self.tokenizer = tokenizer
        self.texts: dict[str, TextStatistics] = {}
        self.facts: dict[str, FactStatistics] = {}
        self.rows = self.samples = self.without_targets = self.double_bos = self.spans = self.open_spans = 0
        self.padding = 0
        self.occurrences: Counter[int] = Counter()
        """How often each sample occurs, by a hash of it."""
        self.examples: dict[int, Sequence[PreviewText]] = {}
        """Samples that occur several times."""
        self._ends = _end_tokens(tokenizer)
        self._is_blank: dict[int, bool] = {}

    def add(self, row: PreviewRow) -> None:
        """Adds a row of a batch."""
        self.rows += 1
        for texts in row.samples:
            self._add_sample([text for text in texts if not text.is_derived], row)
        for name, value in row.facts.items():
            self.facts.setdefault(name, FactStatistics()).add(value)

    def _add_sample(self, texts: Sequence[PreviewText], row: PreviewRow) -> None:
        self.samples += 1
        learned = [text.targets for text in texts if text.targets is not None]
        self.without_targets += bool(learned) and not any(targets.any() for targets in learned)
        for text in texts:
            self.padding += text.padding
            self.texts.setdefault(text.name, TextStatistics()).add(text)
            bos = getattr(self.tokenizer, "bos_token_id", None)
            self.double_bos += bos is not None and text.ids[:2].tolist() == [bos, bos]
            if text.targets is not None and not text.tags and self._ends:
                self._add_spans(text.ids, text.targets)
        key = _key(texts, row)
        self.occurrences[key] += 1
        if self.occurrences[key] == 2 and len(self.examples) < _MAX_EXAMPLES:
            self.examples[key] = texts

    def _add_spans(self, ids: npt.NDArray[np.int64], targets: npt.NDArray[np.bool_]) -> None:
        """Counts the spans of targets, and those that no end token closes, white space apart."""
        for last in np.flatnonzero(targets & ~np.append(targets[1:], False)).tolist():
            self.spans += 1
            while last and targets[last] and self._blank(int(ids[last])):
                last -= 1
            self.open_spans += int(ids[last]) not in self._ends

    def _blank(self, token: int) -> bool:
        """Returns whether a token is white space."""
        if token not in self._is_blank:
            text = "" if self.tokenizer is None or token in self._ends else self.tokenizer.decode([token])
            self._is_blank[token] = str(text).isspace()
        return self._is_blank[token]

    def summary(self) -> dict[str, Any]:
        """Returns the statistics as values of JSON. ``fill`` is the share of tokens that are not padding."""
        tokens = sum(sum(text.lengths) for text in self.texts.values())
        return {
            "rows": self.rows,
            "samples": self.samples,
            "texts": {name: text.summary() for name, text in self.texts.items()},
            "fill": round(tokens / (tokens + self.padding), 4) if tokens else None,
            "without_targets": self.without_targets,
            "double_bos": self.double_bos,
            "target_spans": self.spans,
            "target_spans_without_end_token": self.open_spans,
            "duplicates": self.samples - len(self.occurrences),
            "values": {name: fact.summary() for name, fact in self.facts.items()},
        }

    def most_repeated(self, count: int) -> list[tuple[int, Sequence[PreviewText]]]:
        """Returns up to ``count`` samples of those that occur most often, each with how often it does."""
        common = [(times, key) for key, times in self.occurrences.most_common(count) if times > 1]
        return [(times, self.examples[key]) for times, key in common if key in self.examples]


def histogram(lengths: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Returns the first length, the last one and the number of ``lengths`` of up to ten bins of a round width.

    Bins before the shortest of them are left out.
    """
    longest = max(int(lengths.max()), 1)
    unit = 10 ** int(math.log10(max(longest // _BINS, 1)))
    width = next(step * unit for step in (1, 2, 5, 10) if step * unit * _BINS >= longest)
    counts = np.bincount(np.maximum(lengths - 1, 0) // width)
    first = int(np.flatnonzero(counts)[0])
    return [(n * width + 1, (n + 1) * width, int(counts[n])) for n in range(first, len(counts))]


def _key(texts: Sequence[PreviewText], row: PreviewRow) -> int:
    """Returns a hash of a sample: of its tokens and targets, or of the values of a row without."""
    if not texts:
        values = (value.numpy().tobytes() if isinstance(value, torch.Tensor) else value for value in row.facts.values())
        return hash(tuple(one if isinstance(one, (bytes, str, int, float)) else repr(one) for one in values))
    parts = [(text.ids.tobytes(), b"" if text.targets is None else text.targets.tobytes()) for text in texts]
    return hash(tuple(parts))


def _end_tokens(tokenizer: "PreTrainedTokenizerBase | None") -> frozenset[int]:
    """Returns the tokens that may end a text: the end token, and added ones that are not white space."""
    if tokenizer is None:
        return frozenset()
    added = [number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip()]
    return frozenset(added if tokenizer.eos_token_id is None else [*added, tokenizer.eos_token_id])
