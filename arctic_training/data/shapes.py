"""The shapes in which instruction data come, and one to read them all as: a chat, or a prompt and its completion."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arctic_training.errors import DataError

Row = Mapping[str, Any]

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""What a data set calls a speaker, and what a chat template calls him."""

_PAIR = ("user", "assistant")
_PROBLEM = ("problem", "answer")
_CHATS = ("messages", "conversations", "conversation", "chat", "dialogue")
_PROMPTS = (("prompt", "completion"), ("prompt", "response"), ("query", "response"), ("question", "answer"))

KNOWN = (
    "messages [{role, content}], conversations [{from, value}] (sharegpt), instruction, input, output (alpaca), "
    "prompt and completion (text or messages), problem and answer"
)


@dataclass
class Sample:
    """What the model reads and what it should say. Either messages, or a prompt and its completion as plain text."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    prompt: str = ""
    completion: str = ""
    context: frozenset[int] = frozenset()
    """Which messages of the assistant are not to be learned, counted from 0."""


def reader(columns: Sequence[str]) -> Callable[[Row], Sample]:
    """What reads the rows of a data set with these columns. Raises `DataError` when no shape fits them."""
    there = set(columns)
    for column in _CHATS:
        if column in there:
            return lambda row: _chat(_given(row, column), row)
    if {"instruction", "output"} <= there:
        return _alpaca
    for prompt, completion in _PROMPTS:
        if {prompt, completion} <= there:
            return lambda row: _pair(_given(row, prompt), _given(row, completion), row)
    if {*_PROBLEM} <= there:
        return _problem
    hint = "; plain text is what the causal trainer reads" if "text" in there else ""
    raise DataError(f"no known shape has the columns {', '.join(columns) or '(none)'}; known are {KNOWN}{hint}")


def messages(turns: Any, system: str | None = None) -> list[dict[str, Any]]:
    """The turns of a chat as {role, content, ...}, whatever they are called. Raises `DataError`."""
    if isinstance(turns, str):
        turns = _from_json(turns, "the chat")
    if not isinstance(turns, Sequence) or isinstance(turns, bytes) or not turns:
        raise DataError(f"a chat is a list of messages, not {_short(turns)}")
    read = [_message(turn, n) for n, turn in enumerate(turns, 1)]
    if system and read[0]["role"] != "system":
        read.insert(0, {"role": "system", "content": system})
    return read


def tools(value: Any) -> list[Any] | None:
    """The tools of a chat, given as a list, or as JSON; None when there are none."""
    if isinstance(value, str):
        value = _from_json(value, "tools") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, Sequence):
        raise DataError(f"tools are a list of their descriptions, not {_short(value)}")
    return [_from_json(tool, "a tool") if isinstance(tool, str) else tool for tool in value]


def _message(turn: Any, n: int) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"message {n} is {_short(turn)}; wanted is a mapping with role and content")
    speaker, words = ("role", "content") if "role" in turn else ("from", "value")
    if speaker not in turn:
        raise DataError(f"message {n} has the keys {', '.join(map(str, turn))}; wanted are role and content")
    role = ROLES.get(turn[speaker]) if isinstance(turn[speaker], str) else None
    if role is None:
        raise DataError(f"message {n} has the unknown role {_short(turn[speaker])}; known are {', '.join(ROLES)}")
    message = {"role": role, "content": turn.get(words)}
    if len(turn) > 2 or words not in turn:
        message |= {key: value for key, value in turn.items() if key not in (speaker, words) and value is not None}
    content = message["content"]
    if not content and (message.get("tool_calls") or message.get("reasoning_content")):
        message["content"] = content or ""  # templates test it for truth, or print it
    elif content is None or (role == "assistant" and not content):
        raise DataError(f"message {n} ({role}) has no content")
    elif not isinstance(content, (str, list)):
        raise DataError(f"message {n} ({role}) has the content {_short(content)}; text is wanted")
    if role == "assistant" and message.get("weight") not in (None, 0, 1):
        raise DataError(f"message {n} ({role}) has the weight {_short(message['weight'])}; 0 or 1 is wanted")
    return message


def _given(row: Row, column: str) -> Any:
    """Raises `DataError` when the row, unlike others, has nothing there."""
    if row[column] is None:
        there = [name for name, value in row.items() if value is not None]
        raise DataError(f"{column} is missing; the row has {', '.join(there) or 'nothing'}")
    return row[column]


def _alpaca(row: Row) -> Sample:
    told = [text for text in (_given(row, "instruction"), row.get("input")) if text]
    if not all(isinstance(text, str) for text in told):
        raise DataError(f"instruction and input are {' and '.join(map(_short, told))}; text is wanted")
    asked, answer = "\n\n".join(told), _given(row, "output")
    pairs = [*_history(row.get("history")), (asked, answer)]
    turns = [{"role": role, "content": text} for pair in pairs for role, text in zip(_PAIR, pair, strict=True)]
    return Sample(messages(turns, _system(row)))


def _history(value: Any) -> Sequence[Sequence[Any]]:
    """What was asked and answered before, in pairs."""
    told = _from_json(value, "history") if isinstance(value, str) and value.strip() else value or ()
    if not isinstance(told, (list, tuple)) or not all(isinstance(pair, list) and len(pair) == 2 for pair in told):
        raise DataError(f"history is {_short(value)}; a list of [question, answer] is wanted")
    return told


def _pair(prompt: Any, completion: Any, row: Row) -> Sample:
    if isinstance(prompt, str) and isinstance(completion, str):
        return Sample(prompt=prompt, completion=completion)
    turns: list[Any] = []
    for role, words in zip(_PAIR, (prompt, completion), strict=True):
        if not isinstance(words, (str, list)):
            raise DataError(f"the {role}'s part is {_short(words)}; text or messages are wanted")
        turns += [{"role": role, "content": words}] if isinstance(words, str) else words
    return _chat(turns, row)


def _problem(row: Row) -> Sample:
    """As a chat, so that the tokenizer's template says where the answer begins and ends."""
    turns = [{"role": role, "content": _given(row, name)} for role, name in zip(_PAIR, _PROBLEM, strict=True)]
    return _chat(turns, row)


def _chat(turns: Any, row: Row) -> Sample:
    read = messages(turns, _system(row))
    weights = [message.pop("weight", None) for message in read]  # of OpenAI's format; no template knows it
    context = frozenset(n for n, weight in enumerate(weights) if weight == 0 and read[n]["role"] == "assistant")
    return Sample(read, tools(row.get("tools")), context=context)


def _system(row: Row) -> str | None:
    told = row.get("system") or row.get("system_prompt")
    return told if isinstance(told, str) else None


def _from_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{what} is {_short(text)}, which is not JSON") from None


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 60 else told[:57] + "..."
