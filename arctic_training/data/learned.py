"""Checks that what the assistant says in a row is learned, and nothing that others say."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arctic_training.data.chat_template import Message, Span, text_of
from arctic_training.data.masking import Found
from arctic_training.errors import DataError

_THOUGHT = re.compile(r".*(?:</[\w:]*(?:think|thought|reason)[\w:]*>|\[/[A-Z_]*THINK[A-Z_]*\])", re.DOTALL)
"""What a message of the assistant holds of a thought that a template may leave out, or render otherwise."""

_ENDLESS = "has answers after which the chat template writes no end token, so that their ends are not learned"


def require_learned(found: Found, turns: Sequence[int]) -> None:
    """Checks the answers ``turns``, counted from 0.

    Raises `DataError` when the words of one, or the name of a call, do not stand in it, or when one holds what another
    than the assistant says.
    """
    if found.skeleton is not None:
        return
    numbers = [n for n, message in enumerate(found.chat) if message["role"] == "assistant"]
    for turn in turns:
        n, answer = numbers[turn], found.answers[turn]
        said = "".join(found.text[slice(*span)] for span in answer)
        for what in _missing(found.chat[n], said):
            raise DataError(
                f"message {n + 1}: {what} in what the chat template makes of it, so that it would not be learned; use "
                "a template that renders it, or leave the row out"
            )
    learned = {numbers[turn] for turn in turns}
    spans = sorted(span for turn in turns for span in found.answers[turn])
    others = None
    for n, message in enumerate(found.chat):
        words = text_of(message).strip()
        if n in learned or not words:
            continue
        others = _without(found.text, spans) if others is None else others
        if words not in others and any(words in found.text[slice(*span)] for span in spans):
            raise DataError(
                f"message {n + 1} ({message['role']}) stands in what the assistant says, as the chat template renders "
                "it, so that it would be learned; use a template that tells them apart"
            )


def left_out(found: Found, turns: Sequence[int], ends: tuple[str, ...]) -> Iterator[str]:
    """Returns what to remark on a row whose answers ``turns`` are learned: what of them is not."""
    if found.skeleton is not None:
        if not found.skeleton.ended:
            yield _ENDLESS
        return
    said = {turn: "".join(found.text[slice(*span)] for span in found.answers[turn]) for turn in turns}
    if not all(words.rstrip().endswith(ends) for words in said.values()):
        yield _ENDLESS
    messages = [message for message in found.chat if message["role"] == "assistant"]
    if not all(_stands(text_of(messages[turn]), words) for turn, words in said.items()):
        yield "has answers with thoughts that the chat template leaves out, so that they are not learned"
    if not all(found.answers):
        yield "has answers that the chat template does not enclose in {% generation %}, so that they are not learned"


def _missing(message: Message, said: str) -> Iterator[str]:
    if not _stands(text_of(message), said) and not _stands(_without_thought(message), said):
        yield f"its words {_short(text_of(message).strip())} do not stand"
    names = Counter(_name(call) for call in message.get("tool_calls") or ())
    for name, count in names.items():
        if name and max(said.count(name), said.count(json.dumps(name)[1:-1])) < count:
            yield f"the tool call {_short(name)} does not stand" + f" {count} times" * (count > 1)


def _name(call: Any) -> str:
    called = call.get("function") or call if isinstance(call, Mapping) else None
    return str(called.get("name") or "") if isinstance(called, Mapping) else ""


def _without_thought(message: Message) -> str:
    return _THOUGHT.sub("", text_of(message), count=1)


def _stands(words: str, said: str) -> bool:
    """White space apart, which templates trim."""
    return words.strip() in said or "".join(words.split()) in "".join(said.split())


def _without(text: str, spans: Sequence[Span]) -> str:
    """What is left of a text, the pieces apart."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return "\0".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))


def _short(value: str) -> str:
    told = repr(value)
    return told if len(told) <= 60 else told[:57] + "..."
