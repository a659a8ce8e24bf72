"""Reads preferences of many formats as one: two samples with the same prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arctic_training.data.formats.chat import (
    FLAGS,
    HISTORY,
    PARTS,
    SYSTEM,
    TOOLS,
    Sample,
    is_excluded,
    read_history,
    read_question,
    read_system,
    read_tools,
)
from arctic_training.data.formats.messages import Chat, parse_messages, read_chat, text_of
from arctic_training.data.formats.remarks import remark, unread_columns
from arctic_training.errors.types import DataError

Row = Mapping[str, Any]

COMPLETIONS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("preferred_output", "non_preferred_output"),
)
"""Columns of the chosen completion, and of the rejected one."""
_PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input", "conversations", "messages")
_TEXT = "prompt"
"""The prompt whose text is concatenated with its completions; questions in other columns become a chat."""

KNOWN_FORMATS = "chosen and rejected, each a chat, its last messages or a text, with or without a prompt beside them"


@dataclass(frozen=True)
class Preference:
    """``chosen`` was preferred to ``rejected``."""

    chosen: Sample
    rejected: Sample
    chosen_turns: int = 1
    """How many of the last assistant turns in ``chosen`` come after the prompt."""
    rejected_turns: int = 1

    @property
    def decided(self) -> bool:
        """Returns whether both have a completion, and the completions differ."""
        return self.chosen != self.rejected and min(self.chosen_turns, self.rejected_turns) > 0


@dataclass(frozen=True)
class Reader:
    """Reads the rows of a data set by its columns."""

    chosen: str
    rejected: str
    prompt: tuple[str, ...] = ()
    """The columns of the prompt, in order; none where it is part of both completions."""
    as_chat: bool = False
    """Whether plain texts are read as a chat too."""
    needs_prompt: bool = False
    """True where texts have to share a beginning if no column is the prompt."""

    def __call__(self, row: Row) -> Preference:
        """Raises `DataError` for a row that cannot be read."""
        if is_excluded(row):
            return Preference(Sample(), Sample())  # without a preference
        completions = [parse_messages(row[name]) for name in (self.chosen, self.rejected)]
        for name, value in zip((self.chosen, self.rejected), completions, strict=True):
            if value is None:
                raise DataError(f"{name} is empty")
        prompt = parse_messages(row[self.prompt[0]]) if self.prompt else None
        if isinstance(prompt, Mapping) and "messages" in prompt:  # of OpenAI's format
            prompt, row = prompt["messages"], {**row, "tools": prompt.get("tools")}
        prompt_messages: Any = prompt or []
        if isinstance(prompt, str):
            prompt = read_question(row, self.prompt)
            prompt_messages = [*read_history(row), {"role": "user", "content": prompt}]
        else:
            unread_columns([name for name in (*self.prompt[1:], HISTORY) if row.get(name)], [])
        chosen, rejected = completions
        if isinstance(chosen, str) and isinstance(rejected, str):
            if not self.as_chat and (prompt is None or isinstance(prompt, str)):
                pair = _texts(prompt, chosen, rejected)
                if self.needs_prompt and prompt is None and pair.decided and not pair.chosen.prompt:
                    raise DataError(
                        "chosen and rejected do not begin with the same words, which would be the prompt; give a "
                        "column prompt"
                    )
                return pair
            if not (chosen.strip() and rejected.strip()):
                return Preference(Sample(), Sample())
        return _preference([_chat(prompt_messages, one, row) for one in completions], row)


def reader(columns: Sequence[str], *, needs_prompt: bool = True) -> Reader:
    """Returns the reader of a data set with these columns, and remarks on columns that it does not read.

    ``needs_prompt``: texts without a prompt are refused, of which nothing says what they answer.

    Raises `DataError` when they hold no preferences.
    """
    names = set(columns)
    completions = next((pair for pair in COMPLETIONS if {*pair} <= names), None)
    if completions is None:
        hint = "; prompt, completion and label are unpaired preferences, which KTO reads" if "label" in names else ""
        raise DataError(
            f"no preferences are in the columns {', '.join(columns) or '(none)'}; expected {KNOWN_FORMATS}{hint}"
        )
    first = next((name for name in _PROMPTS if name in names), None)
    parts = [first, *(name for name in PARTS if name in names and name != first)] if first else []
    as_chat = parts != [_TEXT] or bool(names & {HISTORY, *SYSTEM, *TOOLS})
    unread_columns(names, [*completions, *parts, *[HISTORY][: len(parts)], *SYSTEM, *TOOLS, *FLAGS])
    return Reader(*completions, tuple(parts), bool(parts) and as_chat, needs_prompt)


def _preference(chats: Sequence[Chat], row: Row) -> Preference:
    """Returns the preference of two chats; the prompt is what they share. Raises `DataError`."""
    if chats[0].messages[0] != chats[1].messages[0]:
        raise DataError(
            "chosen and rejected begin with different messages; a preference compares two completions to one prompt"
        )
    shared = 0
    longest = min(len(chat.messages) for chat in chats) - 1
    # at least the last message of each is its completion
    while shared < longest and chats[0].messages[shared] == chats[1].messages[shared]:
        shared += 1
    for chat in chats:
        for n, flag in chat.untrained.items():
            if n >= shared:
                raise DataError(f"message {n + 1} has the {flag}; a preference needs both completions")
    chosen, rejected = (Sample(chat.messages, read_tools(row)) for chat in chats)
    counts = [sum(n >= shared for n in chat.answers) for chat in chats]
    return Preference(chosen, rejected, *counts)


def _texts(prompt: str | None, chosen: str, rejected: str) -> Preference:
    """Returns the preference of plain texts, which may repeat the prompt; without one it is what they share."""
    if prompt is None:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        while shared and not chosen[shared - 1 : shared].isspace():
            shared -= 1
        shared = len(chosen[:shared].rstrip())  # a space before a word belongs to the word's token
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif chosen.startswith(prompt) and rejected.startswith(prompt):
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return Preference(Sample(prompt=prompt, completion=chosen), Sample(prompt=prompt, completion=rejected))


def _chat(prompt_messages: list[Any], completion: object, row: Row) -> Chat:
    """Returns the full chat, whether ``completion`` is all of it or what follows the prompt. Raises `DataError`."""
    turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    turns = [turns] if isinstance(turns, Mapping) else turns
    chat = read_chat(turns)
    if chat.messages[0]["role"] not in ("assistant", "tool"):
        if prompt_messages and not _contains(chat, prompt_messages):
            remark("has prompts that are not what the chats beside them begin with, and are not read")
        return read_chat(turns, read_system(row))
    if not prompt_messages:
        raise DataError("a completion stands alone: neither a prompt nor messages before it say what it answers")
    before = read_chat(prompt_messages, read_system(row))
    if before.messages[-1]["role"] == "assistant" and chat.messages[0]["role"] == "assistant":
        raise DataError("the prompt ends with an assistant message, and a completion follows")
    return before + chat


def _contains(chat: Chat, prompt_messages: list[Any]) -> bool:
    """Returns whether a chat contains all messages of a prompt that are not the assistant's."""
    try:
        prompt = read_chat(prompt_messages)
    except DataError:
        return False
    texts = [text_of(message).strip() for message in chat.messages]
    questions = [message for message in prompt.messages if message["role"] != "assistant"]
    return all(text_of(message).strip() in texts for message in questions)
