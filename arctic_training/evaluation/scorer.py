"""Scorers: how good a generated text is beside its reference."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from arctic_training.config.sections.base import C, ComponentConfig
from arctic_training.config.sections.component import Configured
from arctic_training.evaluation.numbers import parse_values


class Scorer(Configured[C], ABC, kind="scorer"):
    """Scores a generated text. A subclass with a ``name`` can be named in a recipe, as a scorer and as a reward."""

    needs_network: bool = False
    """True if it asks a server for its scores: ``validate`` does not call it."""

    @abstractmethod
    def __call__(self, generated: str, reference: str) -> float | None:
        """Returns a score from 0 (wrong) to 1 (right), or None for a text that it does not judge. Both texts are
        without special tokens."""

    def score(self, problem: str, generated: str, reference: str) -> float | None:
        """Returns the score of a completion of ``problem``, the prompt with special tokens. It is called in place of
        the scorer itself; a subclass whose score depends on the prompt overrides it."""
        return self(generated, reference)

    def check(self) -> None:
        """Called before anything is loaded, and by ``validate``. Raises `InputError` for unusable arguments."""

    @property
    def label(self) -> str:
        """Its name among the metrics of the run."""
        return self.name

    def corpus_score(self, generated: Sequence[str], references: Sequence[str]) -> float | None:
        """Returns what an evaluation logs of all texts that are judged, in the place of the mean of their scores; None:
        the mean. A subclass overrides it whose measure of many texts is no mean, such as BLEU."""
        return None


class ExactMatchConfig(ComponentConfig):
    """Keys of the scorer `exact_match`."""

    ignore_case: bool = False
    """Ignore the case of letters."""
    ignore_spaces: bool = False
    """Treat any run of white space as one space."""


class ExactMatchScorer(Scorer[ExactMatchConfig]):
    """Compares the texts, without white space around them."""

    name = "exact_match"

    def __call__(self, generated: str, reference: str) -> float:
        return float(self._normalize(generated) == self._normalize(reference))

    def _normalize(self, text: str) -> str:
        text = " ".join(text.split()) if self.config.ignore_spaces else text.strip()
        return text.casefold() if self.config.ignore_case else text


class ContainsConfig(ComponentConfig):
    """Keys of the scorer `contains`."""

    ignore_case: bool = True
    """Ignore the case of letters."""


class ContainsScorer(Scorer[ContainsConfig]):
    """Checks whether the generated text contains the reference, as whole words and numbers.

    ``5`` is in neither ``-5`` nor ``3.5``. An empty reference is not judged.
    """

    name = "contains"

    def __call__(self, generated: str, reference: str) -> float | None:
        words = reference.strip()
        if not words:
            return None
        before = r"(?<!\w)(?<!\d[.,])(?<!(?<!\w)[-\u2212])" if words[0].isdigit() else r"(?<!\w)"
        after = r"(?!\w)(?![.,]\d)" if words[-1].isdigit() else r"(?!\w)"
        flags = re.IGNORECASE if self.config.ignore_case else 0
        return float(re.search(before + re.escape(words) + after, generated, flags) is not None)


class NumericConfig(ComponentConfig):
    """Keys of the scorer `numeric`."""

    which: Literal["first", "last"] = "last"
    """Which number of the generated text is compared."""
    tolerance: float = Field(default=1e-6, ge=0)
    """Maximum difference, relative to a reference above 1, absolute otherwise."""


class NumericScorer(Scorer[NumericConfig]):
    """Compares one number of the generated text with the last number of the reference, in any notation.

    A reference without a number, or whose last one is a part of something else, as in ``2^10``, is not judged.
    """

    name = "numeric"

    def __call__(self, generated: str, reference: str) -> float | None:
        expected, candidates = parse_values(reference), parse_values(generated)
        if not expected or math.isnan(expected[-1]):
            return None
        if not candidates:
            return 0.0
        number = candidates[0 if self.config.which == "first" else -1]
        return float(abs(number - expected[-1]) <= self.config.tolerance * max(1.0, abs(expected[-1])))


class RegexConfig(ComponentConfig):
    """Keys of the scorer `regex`."""

    pattern: str
    """Regular expression of the answer; if it has groups, the first one is the answer."""
    which: Literal["first", "last"] = "last"
    """Which match in the text is compared."""
    ignore_case: bool = False
    """Ignore the case of letters."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern


class RegexScorer(Scorer[RegexConfig]):
    """Compares the match in the generated text with that in the reference, or with the reference if it has none."""

    name = "regex"

    def __call__(self, generated: str, reference: str) -> float:
        answer, expected = self._match(generated), self._match(reference)
        return float(answer is not None and answer == (reference.strip() if expected is None else expected))

    def _match(self, text: str) -> str | None:
        matches = list(re.finditer(self.config.pattern, text, re.IGNORECASE if self.config.ignore_case else 0))
        if not matches:
            return None
        match = matches[0 if self.config.which == "first" else -1]
        return (match[1] if match.re.groups else match[0] or "").strip()
