"""The shapes in which preferences come, and one to read them all as: two samples with the same prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arctic_training.data.shapes import Sample, messages, tools
from arctic_training.errors import DataError

Row = Mapping[str, Any]

_PROBLEM = "problem"
_PROMPTS = ("prompt", "instruction", "question", "query", "input", _PROBLEM)

KNOWN = "chosen and rejected, each a chat, its last messages or a text, with or without a prompt beside them"


@dataclass(frozen=True)
class Preference:
    """``chosen`` was preferred to ``rejected``."""

    chosen: Sample
    rejected: Sample
    chosen_answers: int = 1
    """How many of the assistant's turns in ``chosen``, its last ones, are not part of the prompt."""
    rejected_answers: int = 1

    @property
    def decided(self) -> bool:
        """Whether both are answers, and different ones."""
        return self.chosen != self.rejected and min(self.chosen_answers, self.rejected_answers) > 0


def reader(columns: Sequence[str]) -> Callable[[Row], Preference]:
    """What reads the rows of a data set with these columns. Raises `DataError` when they hold no preferences."""
    if not {"chosen", "rejected"} <= set(columns):
        raise DataError(f"no preferences are in the columns {', '.join(columns) or '(none)'}; wanted are {KNOWN}")
    prompt = next((name for name in _PROMPTS if name in columns), None)
    return lambda row: preference(row, prompt)


def preference(row: Row, prompt_column: str | None) -> Preference:
    """A row as it is meant. Raises `DataError` for one that cannot be read."""
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row[prompt_column] if prompt_column else None
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if value is None:
            raise DataError(f"{name} is empty")
    if prompt_column == _PROBLEM and isinstance(prompt, str):
        prompt = _asked(prompt)  # as a chat, so that the tokenizer's template says where the answers begin and end
    texts = isinstance(chosen, str) and isinstance(rejected, str)
    if texts and (prompt is None or isinstance(prompt, str)):
        return _texts(prompt, chosen, rejected)
    asked = _asked(prompt)
    chats = [_chat(asked, answer, row) for answer in (chosen, rejected)]
    shared = 0
    while shared < min(map(len, chats)) and chats[0][shared] == chats[1][shared]:
        shared += 1
    # a prompt that is told ends where it says, should the answers begin alike
    shared = min(shared, len(chats[0]) - 1, len(chats[1]) - 1)
    better, worse = (Sample(chat, tools(row.get("tools"))) for chat in chats)
    counts = [sum(message["role"] == "assistant" for message in chat[shared:]) for chat in chats]
    return Preference(better, worse, *counts)


def _texts(prompt: str | None, chosen: str, rejected: str) -> Preference:
    """Plain texts; without a prompt beside them it is what they have in common, up to a white space."""
    if prompt is None:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        while shared and not chosen[shared - 1 : shared].isspace():
            shared -= 1
        shared = len(chosen[:shared].rstrip())  # a space before a word belongs to the word's token
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return Preference(Sample(prompt=prompt, completion=chosen), Sample(prompt=prompt, completion=rejected))


def _asked(prompt: Any) -> list[dict[str, Any]]:
    if prompt is None:
        return []
    return messages([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)


def _chat(asked: list[dict[str, Any]], answer: Any, row: Row) -> list[dict[str, Any]]:
    """The whole chat, whether ``answer`` is all of it or only what comes after the prompt."""
    turns = messages([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)
    system = row.get("system") or row.get("system_prompt")
    alone = turns[0]["role"] in ("assistant", "tool")
    if alone and not asked:
        raise DataError("an answer stands alone: neither a prompt nor messages before it say what it answers")
    return messages([*asked, *turns] if alone else turns, system if isinstance(system, str) else None)
