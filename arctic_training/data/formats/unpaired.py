"""Reads unpaired preferences: completions that were liked or not, each by itself; of a pair both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from arctic_training.data.formats import chat, preference
from arctic_training.data.formats.chat import FLAG_TEXTS, UNPAIRED, Sample
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError

Row = Mapping[str, Any]

KNOWN_FORMATS = "label or kto_tag, true or false, beside the columns of a chat, or chosen and rejected"


@dataclass(frozen=True)
class RatedCompletion:
    """A completion that was liked or not."""

    sample: Sample
    """The prompt and the completion; empty for a row that is excluded from training."""
    is_liked: bool
    turns: int = 1
    """How many of the last assistant turns are the completion."""


def reader(columns: Sequence[str]) -> Callable[[Row], list[RatedCompletion]]:
    """Returns the reader of a data set with these columns: of a row with a label one completion, of a pair two.

    Remarks on columns that it does not read. Raises `DataError` when they hold no preferences.
    """
    names = set(columns)
    if any({*pair} <= names for pair in preference.COMPLETIONS):
        return partial(_read_pair, preference.reader(columns))
    label = next((name for name in UNPAIRED if name in names), None)
    if label is None:
        raise DataError(
            f"no rated completions are in the columns {', '.join(columns) or '(none)'}; expected {KNOWN_FORMATS}"
        )
    return partial(_read_completion, chat.reader(columns), label)


def _read_pair(read: Callable[[Row], preference.Preference], row: Row) -> list[RatedCompletion]:
    pair = read(row)
    return [
        RatedCompletion(pair.chosen, is_liked=True, turns=pair.chosen_turns),
        RatedCompletion(pair.rejected, is_liked=False, turns=pair.rejected_turns),
    ]


def _read_completion(read: chat.Reader, label: str, row: Row) -> list[RatedCompletion]:
    """Raises `DataError` for a row without a label or a completion that counts."""
    is_liked = read_label(row[label], label)
    sample = read.read(row)
    assistant_turns = [n for n, message in enumerate(sample.messages) if message["role"] == "assistant"]
    turns = sum(n >= sample.prompt_length for n in assistant_turns) if sample.prompt_length else 1
    if excluded := [n for n in assistant_turns[len(assistant_turns) - turns :] if n in sample.untrained_messages]:
        raise DataError(f"message {excluded[0] + 1} has the {sample.exclusion}, and the {label} rates it")
    return [RatedCompletion(sample, is_liked, turns)]


def read_label(value: object, name: str) -> bool:
    """Returns the value of a label: true or false, 1 or 0, or their text. Raises `DataError` for another."""
    if isinstance(value, str):
        value = FLAG_TEXTS.get(value.strip().lower(), value)
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise DataError(f"{name} is {short_repr(value)}; expected true or false")
