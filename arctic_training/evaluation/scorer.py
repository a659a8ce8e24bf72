"""Whether what a model generated is right."""

import math
import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from arctic_training.config.sections.base import ComponentConfig
from arctic_training.registry import Registered

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:[eE][-+]?\d+)?")


class Scorer(Registered, ABC, kind="scorer"):
    """A subclass that states a ``name`` is a scorer a recipe can name."""

    config_type: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ComponentConfig) -> None:
        self.config: Any = config

    @abstractmethod
    def __call__(self, generated: str, reference: str) -> float | None:
        """From 0 (wrong) to 1 (right), or None for an answer that it does not judge. Both texts come without special
        tokens."""


class ExactMatchConfig(ComponentConfig):
    ignore_case: bool = False
    """Whether capitals and small letters count as the same."""
    ignore_spaces: bool = False
    """Take any run of white space for one space."""


class ExactMatchScorer(Scorer):
    """The texts are the same, but for white space around them."""

    name = "exact_match"
    config_type = ExactMatchConfig

    def __call__(self, generated: str, reference: str) -> float:
        return float(self._plain(generated) == self._plain(reference))

    def _plain(self, text: str) -> str:
        text = " ".join(text.split()) if self.config.ignore_spaces else text.strip()
        return text.casefold() if self.config.ignore_case else text


class ContainsConfig(ComponentConfig):
    ignore_case: bool = True
    """Whether capitals and small letters count as the same."""


class ContainsScorer(Scorer):
    """The reference stands somewhere in the generated text, as whole words."""

    name = "contains"
    config_type = ContainsConfig

    def __call__(self, generated: str, reference: str) -> float:
        flags = re.IGNORECASE if self.config.ignore_case else 0
        return float(re.search(rf"(?<!\w){re.escape(reference.strip())}(?!\w)", generated, flags) is not None)


class NumericConfig(ComponentConfig):
    which: Literal["first", "last"] = "last"
    """The number of the generated text that counts as its answer."""
    tolerance: float = Field(default=1e-6, ge=0)
    """Largest difference that still is right, relative to the reference, and absolute below 1."""


class NumericScorer(Scorer):
    """One number of the generated text equals the last number of the reference, however either is written."""

    name = "numeric"
    config_type = NumericConfig

    def __call__(self, generated: str, reference: str) -> float:
        wanted, found = numbers(reference), numbers(generated)
        if not wanted or not found:
            return 0.0
        answer = found[0 if self.config.which == "first" else -1]
        return float(abs(answer - wanted[-1]) <= self.config.tolerance * max(1.0, abs(wanted[-1])))


class RegexConfig(ComponentConfig):
    pattern: str
    """What the answer looks like; its first group, if it has one, is the answer."""
    which: Literal["first", "last"] = "last"
    """Which match in the text is taken."""
    ignore_case: bool = False
    """Whether capitals and small letters count as the same."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern


class RegexScorer(Scorer):
    """What the pattern finds in the generated text equals what it finds in the reference, or the reference itself."""

    name = "regex"
    config_type = RegexConfig

    def __call__(self, generated: str, reference: str) -> float:
        answer, wanted = self._find(generated), self._find(reference)
        return float(answer is not None and answer == (reference.strip() if wanted is None else wanted))

    def _find(self, text: str) -> str | None:
        found = list(re.finditer(self.config.pattern, text, re.IGNORECASE if self.config.ignore_case else 0))
        if not found:
            return None
        match = found[0 if self.config.which == "first" else -1]
        return (match[1] if match.re.groups else match[0] or "").strip()


def numbers(text: str) -> list[float]:
    """The numbers in ``text``: ``-3``, ``1,024``, ``.5``, ``1e-4``. A hyphen inside a word is no sign."""
    found = (match[0].replace(",", "") for match in _NUMBER.finditer(re.sub(r"(?<=\w)(?<!\d[eE])-", " ", text)))
    return [value for value in map(float, filter(None, found)) if math.isfinite(value)]
