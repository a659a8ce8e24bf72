"""Reads the messages of data sets as messages for chat templates."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from arctic_training.data.formats.json_text import RepeatedKeyError, loads
from arctic_training.data.formats.remarks import remark
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError

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
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "function_response": "tool",
    "tool_response": "tool",
}
"""The role in a chat template of each role in data sets, in lower case."""

_PLAIN_ROLES = ("system", "user", "assistant")
_CALLS = ("function_call", "tool_call")
"""Roles whose content is the JSON of a tool call."""
_TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a content that are text."""
_CONTENT_KEYS = ("content", "value", "text")
_PAIRS = (("input", "output"), ("question", "answer"), ("human", "assistant"), ("user", "assistant"))
"""Keys of a turn that holds both the user's and the assistant's message."""
_FLAGS = {"weight": False, "train": False, "training": False, "loss": False, "loss_scale": False, "masked": True}
"""Keys that say whether a message is trained on, and whether their value is inverted."""


@dataclass
class Chat:
    """Messages with ``role``, ``content`` and other keys for templates, and which of them the data exclude."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    untrained: dict[int, str] = field(default_factory=dict)
    """The key and value that exclude each of these messages, counted from 0."""

    def __add__(self, other: "Chat") -> "Chat":
        count = len(self.messages)
        later = {count + n: flag for n, flag in other.untrained.items()}
        return Chat(self.messages + other.messages, self.untrained | later)

    @property
    def answers(self) -> frozenset[int]:
        """The assistant messages, counted from 0."""
        return frozenset(n for n, message in enumerate(self.messages) if message["role"] == "assistant")


def read_chat(turns: object, system: str | None = None) -> Chat:
    """Returns a list of turns, or its JSON, as messages; ``system`` is put first unless they have a system message.

    Raises `DataError`.
    """
    if isinstance(turns, str):
        turns = from_json(turns, "the chat")
    if not isinstance(turns, Sequence) or isinstance(turns, bytes) or not turns:
        raise DataError(f"a chat is a list of messages, not {short_repr(turns)}")
    chat, calling = Chat(), False
    for n, turn in enumerate(turns, 1):
        if _is_plain(turn):
            chat.messages.append({**turn})
            calling = False
            continue
        for part in _parts(turn):
            message, flag = _message(part, n)
            before, calling = calling, _role(part) in _CALLS
            if before and calling and bool(flag) == (len(chat.messages) - 1 in chat.untrained):
                chat.messages[-1]["tool_calls"] += message["tool_calls"]  # several calls of one turn
                continue
            if flag:
                chat.untrained[len(chat.messages)] = flag
            chat.messages.append(message)
    if not system or chat.messages[0]["role"] != "system":
        return Chat([{"role": "system", "content": system}]) + chat if system else chat
    if chat.messages[0]["content"] != system:
        remark("has chats with a system message beside another one in a column, which is not read")
    return chat


_PRINTED = re.compile(r"\s*\[\s*\{\s*'(?:role|from|content|value)'\s*:")
"""Messages as Python prints them, and pandas writes them into tables."""


def parse_messages(value: object) -> object:
    """Returns the messages of their JSON, as in a CSV file; any other value as it is.

    Raises `DataError` for messages as Python prints them, and for a key that a mapping in them has twice.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            turns = json.loads(value)
            if turns and all(isinstance(turn, Mapping) and {"role", "from"} & set(turn) for turn in turns):
                return from_json(value, "the chat")
        if _PRINTED.match(value):
            raise DataError(f"{short_repr(value)} are messages as Python prints them; expected JSON (json.dumps)")
    return value


def from_json(text: str, what: str) -> object:
    """Returns the value of JSON text. Raises `DataError`, which begins with ``what``, also for a key given twice."""
    try:
        return loads(text)
    except RepeatedKeyError as error:
        raise DataError(f"{what}: {error}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{what} is {short_repr(text)}, which is not JSON") from None


def text_of(message: Mapping[str, Any]) -> str:
    """Returns the text of a message, of its text parts where it has others too."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(filter(None, map(part_text, content)))


def part_text(part: object) -> str | None:
    """Returns the text of a part of a content; None for a part of another kind."""
    if isinstance(part, Mapping) and part.get("type") in (None, *_TEXT_PARTS):
        part = part.get("text")
    return part if isinstance(part, str) else None


def _is_plain(turn: object) -> TypeGuard[dict[str, Any]]:
    """Returns whether a turn is a message as it is, as most are: other forms need not be looked for."""
    if not isinstance(turn, dict) or len(turn) != 2 or turn.get("role") not in _PLAIN_ROLES:
        return False
    content = turn.get("content")
    return isinstance(content, str) and bool(content.strip())


def _parts(turn: object) -> list[Any]:
    """Returns the messages of a turn: two where it holds a question and its answer."""
    if isinstance(turn, Mapping) and not {"role", "from"} & set(turn):
        for pair in _PAIRS:
            if set(pair) <= set(turn):
                rest = {key: value for key, value in turn.items() if key not in pair}
                question, answer = (turn[key] for key in pair)
                return [{"role": "user", "content": question}, {**rest, "role": "assistant", "content": answer}]
    return [turn]


def _message(turn: object, n: int) -> tuple[dict[str, Any], str]:
    """Returns a message, and the flag that excludes it from training. Raises `DataError`."""
    if not isinstance(turn, Mapping):
        raise DataError(f"message {n} is {short_repr(turn)}; expected a mapping with role and content")
    speaker = "role" if "role" in turn else "from"
    if speaker not in turn:
        raise DataError(f"message {n} has the keys {', '.join(map(str, turn))}; expected role and content")
    content_key = next((key for key in _CONTENT_KEYS if key in turn), "content")
    name = _role(turn)
    if name not in ROLES:
        raise DataError(f"message {n} has the unknown role {short_repr(turn[speaker])}; known are {', '.join(ROLES)}")
    role, content = ROLES[name], turn.get(content_key)
    message = {"role": role, "content": content}
    if len(turn) > 2 or content_key not in turn:
        message |= {
            key: value for key, value in turn.items() if key not in (speaker, content_key) and value is not None
        }
    flag = _untrained(message, f"message {n} ({role})")
    if name in _CALLS or "function_call" in message:
        _read_calls(message, name in _CALLS, f"message {n} ({name})")
        content = message["content"]
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], f"message {n} ({role})")
    if isinstance(content, list):
        _require_text(content, f"message {n} ({role})")
    elif content is not None and not isinstance(content, str):
        raise DataError(f"message {n} ({role}) has the content {short_repr(content)}; expected text")
    if not content and _says_more(message):
        message["content"] = content or ""  # templates test whether it is empty, or print it
    elif content is None or (role == "assistant" and not (text_of(message).strip() or _says_more(message))):
        raise DataError(f"message {n} ({role}) has no content")
    return message, flag


def _says_more(message: Mapping[str, Any]) -> bool:
    """Returns whether a message has a call or a thought beside its content."""
    return bool(message.get("tool_calls") or message.get("reasoning_content"))


def _tool_calls(calls: object, where: str) -> list[object]:
    """Returns the tool calls of a message, a list or its JSON. Raises `DataError` for a call without a name."""
    if isinstance(calls, str):
        calls = from_json(calls, f"tool_calls of {where}") if calls.strip() else []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DataError(f"{where} has the call {short_repr(call)}; expected a mapping with name and arguments")
    return calls if isinstance(calls, list) else [calls]


def _role(turn: Mapping[str, Any]) -> str:
    """Returns the role of a turn, normalized; empty when it is no text."""
    name = turn.get("role", turn.get("from"))
    return name.strip().lower().replace(" ", "_").replace("-", "_") if isinstance(name, str) else ""


def _untrained(message: dict[str, Any], where: str) -> str:
    """Removes the flags of a message, and returns the one that excludes it from training; empty without one.

    Raises `DataError` for values that are neither 0 nor 1, or that disagree.
    """
    if len(message) == 2:
        return ""  # role and content alone, as most have
    if message.get("train_detail"):
        raise DataError(f"{where} has train_detail: a message is learned in full, or not at all")
    flags = {key: message.pop(key) for key in _FLAGS if key in message}
    message.pop("train_detail", None)
    if message["role"] != "assistant":
        if any(value is True for key, value in flags.items() if not _FLAGS[key]):
            remark("has messages flagged for training that are not the assistant's, which are not learned")
        return ""
    for key, value in flags.items():
        if value not in (0, 1):
            raise DataError(f"{where} has the {key} {short_repr(value)}; expected 0 or 1")
    learned = {key: bool(value) != _FLAGS[key] for key, value in flags.items()}
    if len({*learned.values()}) > 1:
        raise DataError(f"{where} has {', '.join(f'{key}: {flags[key]}' for key in learned)}, which disagree")
    return next((f"{key} {json.dumps(flags[key])}" for key, one in learned.items() if not one), "")


def _read_calls(message: dict[str, Any], in_content: bool, where: str) -> None:
    """Moves the tool calls of a message, in its content or under OpenAI's older ``function_call``, to ``tool_calls``.

    Raises `DataError`.
    """
    if message.get("tool_calls"):
        raise DataError(f"{where} has both function_call and tool_calls")
    raw = message["content"] if in_content else message.pop("function_call")
    calls = from_json(raw, f"the call of {where}") if isinstance(raw, str) else raw
    tool_calls = []
    for call in calls if isinstance(calls, list) and calls else [calls]:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or "arguments" not in inner:
            raise DataError(f"{where} has the call {short_repr(call)}; expected a mapping with name and arguments")
        tool_calls.append({"type": "function", "function": {"name": inner["name"], "arguments": inner["arguments"]}})
    message["tool_calls"] = tool_calls
    if in_content:
        message["content"] = ""


def _require_text(parts: list[object], where: str) -> None:
    """Raises `DataError` for a part that is no text."""
    for part in parts:
        if part_text(part) is None:
            kind = part.get("type") or "text" if isinstance(part, Mapping) else "text"
            what = (
                f"the part {short_repr(part)} without a text" if kind in _TEXT_PARTS else f"a part of the type {kind}"
            )
            raise DataError(f"{where} has {what}; only text is read")
