"""Reads instruction data of many formats as one: a chat, or a prompt and its completion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from arctic_training.data.formats.messages import Chat, from_json, parse_messages, read_chat
from arctic_training.data.formats.remarks import UNREAD_COLUMNS, remark, unread_columns
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError

Row = Mapping[str, Any]

_CHATS = ("messages", "conversations", "conversation", "chat", "dialogue")
_PAIRS = (
    ("instruction", "output"),
    ("prompt", "completion"),
    ("problem", "answer"),
    ("problem", "solution"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("input", "output"),
    ("source", "target"),
)
"""Columns of a question and its answer; the first pair that a data set has is read."""
_TEXT = ("prompt", "completion")
"""The pair whose texts are concatenated without a chat template."""
PARTS = ("input", "context")
"""Columns that continue a question, after an empty line."""
HISTORY = "history"
"""A column of earlier questions and answers, in pairs."""
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
FLAGS = {"weight": True, "train": True, "training": True, "loss": False}
"""Columns that say whether a row is trained on, and whether numbers count too."""
UNPAIRED = {"label": False, "kto_tag": True}
"""Columns that say whether a completion was liked, in data for KTO, and whether numbers count too."""

FLAG_TEXTS = {"true": True, "false": False, "1": 1, "0": 0, "1.0": 1, "0.0": 0}

KNOWN_FORMATS = (
    "messages [{role, content}], conversations [{from, value}] (sharegpt), instruction, input, output (alpaca), "
    "prompt and completion (text or messages), " + ", ".join(" and ".join(pair) for pair in _PAIRS[2:])
)


@dataclass
class Sample:
    """Messages, or a prompt and its completion as plain text."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    prompt: str = ""
    completion: str = ""
    untrained_messages: frozenset[int] = frozenset()
    """The assistant messages without labels, counted from 0."""
    prompt_messages: frozenset[int] = frozenset()
    """Those of them that are part of a prompt; the data exclude the others."""
    prompt_length: int = field(default=0, compare=False)
    """Messages of the prompt, where the row has prompt and completion apart; else 0."""
    exclusion: str = field(default="weight 0", compare=False)
    """The key and value that exclude the first of the others."""


class Reader:
    """Reads the rows of a data set as samples."""

    def __init__(self, read: Callable[[Row], Sample], columns: Sequence[str]) -> None:
        """``columns`` are all columns that ``read`` uses, without the flags of a row."""
        self._read, self.columns = read, frozenset(columns)

    def __call__(self, row: Row) -> Sample:
        """Raises `DataError` for a row that cannot be read, or whose completion was not liked."""
        for name, numbers in UNPAIRED.items():
            if _flag(row, name, numbers=numbers) is False:
                raise DataError(
                    f"{name} is {str(row[name]).lower()}: the row is an unpaired preference for KTO, a completion that "
                    "must not be learned"
                )
        return self.read(row)

    def read(self, row: Row) -> Sample:
        """Returns the sample of a row, liked or not. Raises `DataError` for a row that cannot be read."""
        return Sample() if is_excluded(row) else self._read(row)


def is_excluded(row: Row) -> bool:
    """Returns whether a flag of the row excludes it from training."""
    return False in [_flag(row, name, numbers=numbers) for name, numbers in FLAGS.items()]


def _flag(row: Row, name: str, *, numbers: bool) -> bool | None:
    """Returns the value of a flag; None without one. ``numbers``: 0 and 1 are values too."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, str):  # as in every cell of a CSV file
        value = FLAG_TEXTS.get(value.strip().lower(), value)
    if isinstance(value, bool) or (numbers and value in (0, 1)):
        return bool(value)
    remark(UNREAD_COLUMNS, name)
    return None


def reader(columns: Sequence[str]) -> Reader:
    """Returns the reader of a data set with these columns, and remarks on columns that it does not read.

    Raises `DataError` when no format has them.
    """
    names = set(columns)
    if (row_reader := _find_reader(names)) is None:
        hint = "; the causal trainer reads plain text" if "text" in names else ""
        hint += "; the dpo trainer reads chosen and rejected" if {"chosen", "rejected"} <= names else ""
        raise DataError(
            f"no known format has the columns {', '.join(columns) or '(none)'}; known are {KNOWN_FORMATS}{hint}"
        )
    unread_columns(names, row_reader.columns | {*FLAGS, *UNPAIRED})
    return row_reader


def _find_reader(names: set[str]) -> Reader | None:
    """Returns the reader of the first format whose columns are among ``names``; None where there is no such format."""
    others = [*SYSTEM, *TOOLS]
    if column := next((name for name in _CHATS if name in names), None):
        return Reader(partial(_read_messages, column=column), [column, *others])
    if names.issuperset(_TEXT):
        as_chat = not names.isdisjoint(others)  # only a chat template can render these
        return Reader(partial(_read_completion, as_chat=as_chat), [*_TEXT, *others])
    pair = next((pair for pair in _PAIRS if names.issuperset(pair)), None)
    if pair is None:
        return None
    question, answer = pair
    parts = [name for name in PARTS if name in names and name not in pair]
    columns = [*pair, *parts, HISTORY, *others]
    return Reader(partial(_read_pair, names=[question, *parts], column=answer), columns)


def to_sample(chat: Chat, row: Row, *, prompt: int = 0) -> Sample:
    """Returns a chat as a sample; its first ``prompt`` messages have no labels."""
    in_prompt = chat.answers & {*range(prompt)} - {*chat.untrained} if prompt else frozenset()
    read = Sample(
        chat.messages,
        read_tools(row),
        untrained_messages=in_prompt | {*chat.untrained},
        prompt_messages=in_prompt,
        prompt_length=prompt,
    )
    if chat.untrained:
        read.exclusion = chat.untrained[min(chat.untrained)]
    return read


def read_system(row: Row) -> str | None:
    """Returns the system prompt from a column of its own; None without one. Raises `DataError`."""
    name = _first(row, SYSTEM)
    if name is None:
        return None
    if not isinstance(row[name], str):
        raise DataError(f"{name} is {short_repr(row[name])}; expected text")
    return str(row[name])


def read_tools(row: Row) -> list[Any] | None:
    """Returns the tools of a row, a list or its JSON; None without any. Raises `DataError`."""
    name = _first(row, TOOLS)
    value = None if name is None else row[name]
    if isinstance(value, str):
        value = from_json(value, str(name)) if value.strip() else None
    if not value:
        return None
    if not isinstance(value, Sequence):
        raise DataError(f"{name} are a list of their descriptions, not {short_repr(value)}")
    listed = [from_json(tool, "a tool") if isinstance(tool, str) else tool for tool in value]
    if wrong := [tool for tool in listed if not isinstance(tool, Mapping)]:
        raise DataError(f"{name} have {short_repr(wrong[0])}; expected the description of a function, a mapping")
    return listed if name == "tools" else [{"type": "function", "function": tool} for tool in listed]


def _first(row: Row, names: Sequence[str]) -> str | None:
    """Returns the first of several columns that has a value in a row, and remarks on others that have one."""
    present = [name for name in names if row.get(name)]
    for name in present[1:]:
        remark(UNREAD_COLUMNS, name)
    return next(iter(present), None)


def read_question(row: Row, names: Sequence[str]) -> str:
    """Returns the texts of several columns as one question. Raises `DataError`."""
    texts = {name: row[name] for name in names if row.get(name) not in (None, "")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f"{' and '.join(texts)} are {' and '.join(map(short_repr, texts.values()))}; expected text")
    return "\n\n".join(texts.values())


def _value(row: Row, column: str) -> object:
    """Returns a column of a row. Raises `DataError` when this row has no value."""
    if row[column] is None:
        names = [name for name, value in row.items() if value is not None]
        raise DataError(f"{column} is missing; the row has {', '.join(names) or 'nothing'}")
    return row[column]


def _read_messages(row: Row, *, column: str) -> Sample:
    return to_sample(read_chat(_value(row, column), read_system(row)), row)


def _read_pair(row: Row, names: Sequence[str], column: str) -> Sample:
    """Returns a question and its answer as a chat, whose template has an end for the answer."""
    prompt, answer = parse_messages(_value(row, names[0])), parse_messages(_value(row, column))
    if isinstance(prompt, list) or isinstance(answer, list):
        return _join(prompt, answer, row)
    turns = [*read_history(row), *_turns(read_question(row, names))]
    if isinstance(answer, str) and not answer.strip():
        return to_sample(read_chat(turns, read_system(row)), row, prompt=len(turns) + 1)  # no message has labels
    return to_sample(read_chat([*turns, *_turns(None, answer)], read_system(row)), row)


def _turns(prompt: object = None, answer: object = None) -> list[dict[str, Any]]:
    pair = (("user", prompt), ("assistant", answer))
    return [{"role": role, "content": content} for role, content in pair if content is not None]


def read_history(row: Row) -> list[dict[str, Any]]:
    """Returns the messages of earlier questions and answers, which are in pairs. Raises `DataError`."""
    value = row.get(HISTORY)
    if isinstance(value, str) and not value.lstrip().startswith("["):
        if value.strip():
            remark(UNREAD_COLUMNS, HISTORY)  # prose
        return []
    pairs = from_json(value, HISTORY) if isinstance(value, str) else value or ()
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{HISTORY} is {short_repr(value)}; expected a list of [question, answer]")
    return [part for pair in pairs for part in _turns(*pair)]


def _read_completion(row: Row, *, as_chat: bool) -> Sample:
    """Returns a prompt and its completion: plain text, or a chat."""
    prompt, completion = (parse_messages(_value(row, name)) for name in _TEXT)
    if isinstance(prompt, str) and isinstance(completion, str):
        return _read_pair(row, _TEXT[:1], _TEXT[1]) if as_chat else Sample(prompt=prompt, completion=completion)
    return _join(prompt, completion, row)


def _join(prompt: object, completion: object, row: Row) -> Sample:
    """Returns the messages of a prompt and of its completion, of which only the latter have labels."""
    before, after = _as_turns("user", prompt), _as_turns("assistant", completion)
    length = len(read_chat(before, read_system(row)).messages)
    return to_sample(read_chat([*before, *after], read_system(row)), row, prompt=length)


def _as_turns(role: str, content: object) -> list[Any]:
    """Returns a list of messages as it is, and text as a message. Raises `DataError` for anything else."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise DataError(f"the {role}'s part is {short_repr(content)}; expected text or messages")
    return content
