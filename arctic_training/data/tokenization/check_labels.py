"""Checks that what the assistant says in a row is learned, and nothing that others say."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from arctic_training.data.formats.messages import text_of
from arctic_training.data.tokenization.assistant_mask import Found
from arctic_training.data.tokenization.chat_template import Message, Span
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError

_THOUGHT = re.compile(r".*(?:</[\w:]*(?:think|thought|reason)[\w:]*>|\[/[A-Z_]*THINK[A-Z_]*\])", re.DOTALL)
"""What a message of the assistant holds of a thought that a template may leave out, or render otherwise."""

_WORD = re.compile(r"\w+")

_ENDLESS = "has answers after which the chat template writes no end token, so that their ends are not learned"


def check_learned(found: Found, turns: Sequence[int], ends: tuple[str, ...]) -> list[str]:
    """Checks the answers ``turns``, counted from 0, and returns what to remark on them; ``ends`` are the end tokens.

    Raises `DataError` when the words of one, or the name of a call, do not stand in it, or when one holds what another
    message says.
    """
    if found.skeleton is not None:
        return [] if found.skeleton.ended else [_ENDLESS]
    numbers = [n for n, message in enumerate(found.chat) if message["role"] == "assistant"]
    remarks = []
    for turn in turns:
        n, message = numbers[turn], found.chat[numbers[turn]]
        said = "".join([found.text[start:end] for start, end in found.answers[turn]])
        for what in _missing(message, said):
            raise DataError(
                f"message {n + 1}: {what} in what the chat template makes of it, so that it would not be learned; use "
                "a template that renders it, or leave the row out"
            )
        if not said.rstrip().endswith(ends):
            remarks.append(_ENDLESS)
        if not _stands(text_of(message), said):
            remarks.append("has answers with thoughts that the chat template leaves out, so that they are not learned")
    if not all(found.answers):
        remarks.append(
            "has answers that the chat template does not enclose in {% generation %}, so that they are not learned"
        )
    remarks += [
        f"has messages of the role {message['role']} that the chat template leaves out"
        for message in found.chat
        if message["role"] != "assistant" and _is_left_out(text_of(message), found.text)
    ]
    _require_apart(found, {numbers[turn] for turn in turns}, sorted(span for k in turns for span in found.answers[k]))
    return remarks


def _require_apart(found: Found, learned: Collection[int], spans: Sequence[Span]) -> None:
    """Raises `DataError` when a message that is not ``learned`` stands in ``spans`` only."""
    others = _without(found.text, spans)
    for n, message in enumerate(found.chat):
        words = "" if n in learned else text_of(message).strip()
        if words not in others and any(words in found.text[slice(*span)] for span in spans):
            raise DataError(
                f"message {n + 1} ({message['role']}) stands in what the assistant says, as the chat template renders "
                "it, so that it would be learned; use a template that tells them apart"
            )


def _missing(message: Message, said: str) -> Iterator[str]:
    words = text_of(message)
    if not _stands(words, said):
        rest = _THOUGHT.sub("", words, count=1)
        if not _stands(rest, said) or not (rest.strip() or message.get("tool_calls")):
            yield f"its words {short_repr(words.strip())} do not stand"
    names = Counter(_name(call) for call in message.get("tool_calls") or ())
    for name, count in names.items():
        if name and max(said.count(name), said.count(json.dumps(name)[1:-1])) < count:
            yield f"the tool call {short_repr(name)} does not stand" + f" {count} times" * (count > 1)


def _name(call: Any) -> str:
    called = call.get("function") or call if isinstance(call, Mapping) else None
    return str(called.get("name") or "") if isinstance(called, Mapping) else ""


def _stands(words: str, said: str) -> bool:
    """White space apart, which templates trim."""
    return words.strip() in said or "".join(words.split()) in "".join(said.split())


def _is_left_out(words: str, text: str) -> bool:
    """Some word does not stand, however templates trim and quote."""
    return words.strip() not in text and not all(word in text for word in _WORD.findall(words) or [words.strip()])


def _without(text: str, spans: Sequence[Span]) -> str:
    """What is left of a text, the pieces apart."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return "\0".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
