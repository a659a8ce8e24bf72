"""Checks that the labels of a chat hold what the assistant says, and nothing that others say."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from arctic_training.data.formats.messages import text_of
from arctic_training.data.tokenization.assistant_mask import MaskedChat
from arctic_training.data.tokenization.chat_template import Message, Span
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError

_THOUGHT = re.compile(r".*(?:</[\w:]*(?:think|thought|reason)[\w:]*>|\[/[A-Z_]*THINK[A-Z_]*\])", re.DOTALL)
"""The thought in an assistant message, which a template may leave out or render differently."""

_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold its thought apart from its words."""

_WORD = re.compile(r"\w+")

_NO_END_TOKEN = "has answers after which the chat template writes no end token, so that their ends are not learned"


def check_labels(masked: MaskedChat, turns: Sequence[int], end_tokens: tuple[str, ...]) -> list[str]:
    """Checks the turns of the assistant that are to be learned, counted from 0, and returns remarks on them.

    A turn that the template does not enclose has no labels, which is a remark. Raises `DataError` when the words of an
    enclosed one, or the name of a call, are not in its text, or when it holds the words of another message.
    """
    if masked.layout is not None:
        return [] if all(masked.layout.ended[turn] for turn in turns) else [_NO_END_TOKEN]
    if _is_in_order(masked, end_tokens):
        return []
    numbers = [n for n, message in enumerate(masked.messages) if message["role"] == "assistant"]
    enclosed = [turn for turn in turns if masked.answers[turn]]
    remarks = []
    for turn in enclosed:
        n, message = numbers[turn], masked.messages[numbers[turn]]
        answer = "".join([masked.text[start:end] for start, end in masked.answers[turn]])
        for what in _missing(message, answer):
            raise DataError(
                f"message {n + 1}: {what} in what the chat template makes of it, so that it would not be learned; use "
                "a template that renders it, or remove the row"
            )
        if not answer.rstrip().endswith(end_tokens):
            remarks.append(_NO_END_TOKEN)
        if not all(_contains(answer, words) for words in (text_of(message), *_thoughts(message))):
            remarks.append("has answers with thoughts that the chat template leaves out, so that they are not learned")
    if len(enclosed) < len(turns):
        remarks.append(
            "has answers that the chat template does not enclose in {% generation %}, so that they are not learned"
        )
    remarks += [
        f"has messages of the role {message['role']} that the chat template leaves out"
        for message in masked.messages
        if message["role"] != "assistant" and _is_left_out(text_of(message), masked.text)
    ]
    spans = sorted(span for turn in enclosed for span in masked.answers[turn])
    _check_others(masked, {numbers[turn] for turn in enclosed}, spans)
    return remarks


def _is_in_order(masked: MaskedChat, end_tokens: tuple[str, ...]) -> bool:
    """Returns whether messages of role and text alone stand one after the other, each answer within its only span,
    which an end token ends. Most chats do, and there is then nothing that `check_labels` would find."""
    text, at, answers = masked.text, 0, iter(masked.answers)
    for message in masked.messages:
        content = message.get("content")
        if len(message) != 2 or not isinstance(content, str):
            return False
        words = content.strip()
        if message["role"] != "assistant":
            if (place := text.find(words, at)) < 0:
                return False
            at = place + len(words)
            continue
        spans = next(answers)
        if len(spans) != 1 or spans[0][0] < at or text.find(words, *spans[0]) < 0:
            return False
        at = spans[0][1]
        if not text.endswith(end_tokens, *spans[0]) or text[at - 1].isspace():
            return False
    return True


def _check_others(masked: MaskedChat, labelled: Collection[int], spans: Sequence[Span]) -> None:
    """Raises `DataError` when a message that is not ``labelled`` stands in ``spans`` only."""
    others = _without(masked.text, spans)
    for n, message in enumerate(masked.messages):
        words = "" if n in labelled else text_of(message).strip()
        if words not in others and any(words in masked.text[slice(*span)] for span in spans):
            raise DataError(
                f"message {n + 1} ({message['role']}) stands in what the assistant says, as the chat template renders "
                "it, so that it would be learned; use a template that tells them apart"
            )


def _missing(message: Message, answer: str) -> Iterator[str]:
    """Yields what a message has and the text of its turn has not, as a clause of an error."""
    words = text_of(message)
    if not _contains(answer, words):
        rest = _THOUGHT.sub("", words, count=1)
        if not _contains(answer, rest) or not (rest.strip() or message.get("tool_calls")):
            yield f"its words {short_repr(words.strip())} do not stand"
    if not (words.strip() or message.get("tool_calls")):
        for thought in _thoughts(message):
            if not _contains(answer, thought):
                yield f"its thought {short_repr(thought.strip())}, which is all that it says, does not stand"
    names = Counter(_name(call) for call in message.get("tool_calls") or ())
    for name, count in names.items():
        if name and max(answer.count(name), answer.count(json.dumps(name)[1:-1])) < count:
            yield f"the tool call {short_repr(name)} does not stand" + (f" {count} times" if count > 1 else "")


def _thoughts(message: Message) -> list[str]:
    """Returns the thoughts of a message that are apart from its words."""
    return [thought for key in _THOUGHT_KEYS if isinstance(thought := message.get(key), str)]


def _name(call: object) -> str:
    """Returns the name of the function that a tool call names; empty without one."""
    function = call.get("function") or call if isinstance(call, Mapping) else None
    return str(function.get("name") or "") if isinstance(function, Mapping) else ""


def _contains(text: str, words: str) -> bool:
    """Returns whether a text contains words, white space apart, which templates trim."""
    return words.strip() in text or "".join(words.split()) in "".join(text.split())


def _is_left_out(words: str, text: str) -> bool:
    """Returns whether some word is not in a text, however templates trim and quote."""
    return words.strip() not in text and not all(word in text for word in _WORD.findall(words) or [words.strip()])


def _without(text: str, spans: Sequence[Span]) -> str:
    """Returns a text without the spans, with a NUL between the rest."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return "\0".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
