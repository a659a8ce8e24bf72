"""The shapes in which instruction data come, and one to read them all as: a chat, or a prompt and its completion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from arctic_training.data.formats.messages import Chat, from_json, parsed, read_chat
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
)
"""Columns of a question and its answer; the first pair that a data set has is read."""
_TEXT = ("prompt", "completion")
"""The pair whose texts are one text as they are."""
PARTS = ("input", "context")
"""Columns that go on with a question, after an empty line."""
HISTORY = "history"
"""A column of the questions and answers before, in pairs."""
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
FLAGS = {"weight": True, "train": True, "training": True, "loss": False}
"""Columns that say whether a row is learned, and whether a number says so too."""
_UNPAIRED = {"label": False, "kto_tag": True}
"""Columns that say whether an answer was liked, in data for KTO, and whether a number says so too."""

_AS_WRITTEN = {"true": True, "false": False, "1": 1, "0": 0, "1.0": 1, "0.0": 0}

KNOWN = (
    "messages [{role, content}], conversations [{from, value}] (sharegpt), instruction, input, output (alpaca), "
    "prompt and completion (text or messages), " + ", ".join(" and ".join(pair) for pair in _PAIRS[2:])
)


@dataclass
class Sample:
    """What the model reads and what it should say. Either messages, or a prompt and its completion as plain text."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    prompt: str = ""
    completion: str = ""
    untrained_messages: frozenset[int] = frozenset()
    """Which messages of the assistant are not to be learned, counted from 0."""
    prompt_messages: frozenset[int] = frozenset()
    """Which of these are so because they are part of a prompt; the data themselves exclude the others."""
    exclusion: str = field(default="weight 0", compare=False)
    """What the first of the others has, by which it is excluded."""


class Reader:
    """Reads the rows of a data set."""

    def __init__(self, read: Callable[[Row], Sample], columns: Sequence[str]) -> None:
        """``columns`` are all that it reads, flags of a row apart."""
        self._read, self.columns = read, frozenset(columns)

    def __call__(self, row: Row) -> Sample:
        """Raises `DataError` for a row that cannot be read."""
        for name, numbers in _UNPAIRED.items():
            if _flag(row, name, numbers=numbers) is False:
                raise DataError(
                    f"{name} is {str(row[name]).lower()}: the row is of KTO's unpaired preferences, an answer that is "
                    "not to be learned"
                )
        return Sample() if is_excluded(row) else self._read(row)


def is_excluded(row: Row) -> bool:
    """Returns whether a row itself says that it is not to be learned."""
    return False in [_flag(row, name, numbers=numbers) for name, numbers in FLAGS.items()]


def _flag(row: Row, name: str, *, numbers: bool) -> bool | None:
    """Returns what a column says of its row, yes or no, as a word or one of ``numbers``; else it is not read."""
    value = row.get(name)
    if isinstance(value, str):  # as every cell of a table of text is
        value = _AS_WRITTEN.get(value.strip().lower(), value)
    if isinstance(value, bool) or (numbers and value in (0, 1)):
        return bool(value)
    if value is not None:
        remark(UNREAD_COLUMNS, name)
    return None


def reader(columns: Sequence[str]) -> Reader:
    """Returns what reads the rows of a data set with these columns, and remarks on those that nothing reads.

    Raises `DataError` when no shape fits them.
    """
    there = set(columns)
    found = next(filter(None, (find(there) for find in (_chat_reader, _text_reader, _pair_reader))), None)
    if found is None:
        hint = "; plain text is what the causal trainer reads" if "text" in there else ""
        hint += "; chosen and rejected are what the dpo trainer reads" if {"chosen", "rejected"} <= there else ""
        raise DataError(f"no known shape has the columns {', '.join(columns) or '(none)'}; known are {KNOWN}{hint}")
    unread_columns(there, found.columns | {*FLAGS, *_UNPAIRED})
    return found


def _chat_reader(there: set[str]) -> Reader | None:
    column = next((name for name in _CHATS if name in there), None)
    if column is None:
        return None
    return Reader(partial(_read_messages, column=column), [column, *SYSTEM, *TOOLS])


def _text_reader(there: set[str]) -> Reader | None:
    if not {*_TEXT} <= there:
        return None
    as_chat = bool(there & {*SYSTEM, *TOOLS})  # which only a chat template can put before the prompt
    return Reader(partial(_prompted, as_chat=as_chat), [*_TEXT, *SYSTEM, *TOOLS])


def _pair_reader(there: set[str]) -> Reader | None:
    pair = next((pair for pair in _PAIRS if {*pair} <= there), None)
    if pair is None:
        return None
    question, answer = pair
    parts = [name for name in PARTS if name in there and name not in pair]
    columns = [*pair, *parts, HISTORY, *SYSTEM, *TOOLS]
    return Reader(partial(_answered, names=[question, *parts], column=answer), columns)


def sample(chat: Chat, row: Row, *, prompt: int = 0) -> Sample:
    """Returns a chat as a sample; the assistant's words in its first ``prompt`` messages are not learned."""
    prompted = chat.answers & {*range(prompt)} - {*chat.untrained}
    read = Sample(chat.messages, tools(row), untrained_messages=prompted | {*chat.untrained}, prompt_messages=prompted)
    if chat.untrained:
        read.exclusion = chat.untrained[min(chat.untrained)]
    return read


def system(row: Row) -> str | None:
    """Returns the system prompt that stands in a column of its own. Raises `DataError`."""
    name = next((name for name in SYSTEM if row.get(name)), None)
    if name is None:
        return None
    if not isinstance(row[name], str):
        raise DataError(f"{name} is {short_repr(row[name])}; text is wanted")
    return str(row[name])


def tools(row: Row) -> list[Any] | None:
    """Returns the tools of a row, which are a list, or its JSON; None when there are none. Raises `DataError`."""
    name = next((name for name in TOOLS if row.get(name)), None)
    value = None if name is None else row[name]
    if isinstance(value, str):
        value = from_json(value, str(name)) if value.strip() else None
    if not value:
        return None
    if not isinstance(value, Sequence):
        raise DataError(f"{name} are a list of their descriptions, not {short_repr(value)}")
    listed = [from_json(tool, "a tool") if isinstance(tool, str) else tool for tool in value]
    return listed if name == "tools" else [{"type": "function", "function": tool} for tool in listed]


def question(row: Row, names: Sequence[str]) -> str:
    """Returns the words of several columns, one after the other, as one question. Raises `DataError`."""
    texts = {name: row[name] for name in names if row.get(name)}
    if not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f"{' and '.join(texts)} are {' and '.join(map(short_repr, texts.values()))}; text is wanted")
    return "\n\n".join(texts.values())


def _given(row: Row, column: str) -> Any:
    """Raises `DataError` when the row, unlike others, has nothing there."""
    if row[column] is None:
        there = [name for name, value in row.items() if value is not None]
        raise DataError(f"{column} is missing; the row has {', '.join(there) or 'nothing'}")
    return row[column]


def _read_messages(row: Row, *, column: str) -> Sample:
    return sample(read_chat(_given(row, column), system(row)), row)


def _answered(row: Row, names: Sequence[str], column: str) -> Sample:
    """Returns a question and its answer as a chat, so that the template says where the answer begins and ends."""
    asked, answer = parsed(_given(row, names[0])), parsed(_given(row, column))
    if isinstance(asked, list) or isinstance(answer, list):
        return _continued(asked, answer, row)
    turns = [*history(row), *_turns(question(row, names))]
    if isinstance(answer, str) and not answer.strip():
        return sample(read_chat(turns, system(row)), row, prompt=len(turns) + 1)  # nothing is learned
    return sample(read_chat([*turns, *_turns(None, answer)], system(row)), row)


def _turns(asked: Any = None, answer: Any = None) -> list[dict[str, Any]]:
    pair = (("user", asked), ("assistant", answer))
    return [{"role": role, "content": words} for role, words in pair if words is not None]


def history(row: Row) -> list[dict[str, Any]]:
    """Returns the messages of the questions and answers before, which stand in pairs. Raises `DataError`."""
    value = row.get(HISTORY)
    if isinstance(value, str) and not value.lstrip().startswith("["):
        if value.strip():
            remark(UNREAD_COLUMNS, HISTORY)  # which tells a story
        return []
    told = from_json(value, HISTORY) if isinstance(value, str) else value or ()
    if not isinstance(told, (list, tuple)) or not all(isinstance(pair, list) and len(pair) == 2 for pair in told):
        raise DataError(f"{HISTORY} is {short_repr(value)}; a list of [question, answer] is wanted")
    return [part for pair in told for part in _turns(*pair)]


def _prompted(row: Row, *, as_chat: bool) -> Sample:
    """Returns a prompt and its completion: text as it is, or a chat."""
    prompt, completion = (parsed(_given(row, name)) for name in _TEXT)
    if isinstance(prompt, str) and isinstance(completion, str):
        return _answered(row, _TEXT[:1], _TEXT[1]) if as_chat else Sample(prompt=prompt, completion=completion)
    return _continued(prompt, completion, row)


def _continued(prompt: Any, completion: Any, row: Row) -> Sample:
    """Returns the messages of a prompt and of its completion, of which only the latter are learned."""
    for name, words in (("user", prompt), ("assistant", completion)):
        if not isinstance(words, (str, list)):
            raise DataError(f"the {name}'s part is {short_repr(words)}; text or messages are wanted")
    before = _turns(prompt) if isinstance(prompt, str) else prompt
    after = _turns(None, completion) if isinstance(completion, str) else completion
    length = len(read_chat(before, system(row)).messages)
    return sample(read_chat([*before, *after], system(row)), row, prompt=length)
