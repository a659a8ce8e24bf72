"""Finds the characters of a rendered chat that the assistant says: its turns and their end tokens, nothing else.

Where the template has ``{% generation %}`` tags, they are what the tags enclose. Elsewhere the chat is rendered up to
each turn and through it: when the full text begins with both, the turn is what lies between. Where a template renders a
turn differently once others follow (it drops earlier thoughts), a marker in the place of the turn's words shows where
they went; where the generation prompt differs from the beginning of an answer, the turn begins where both part. What
cannot be found exactly is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arctic_training.data.tokenization.chat_template import Chat, ChatTemplate, Span
from arctic_training.data.tokenization.turn_locator import Renderer, TurnLocator, place_of
from arctic_training.errors.types import DataError

_EMPTY_THOUGHT = re.compile(r"\s*(?:<think>\s*)?</think>\s*")
"""The generation prompt may have opened it."""


@dataclass(frozen=True)
class MaskedChat:
    """A rendered chat, and the spans of the assistant's turns in its text."""

    messages: Chat
    """As the template takes them."""
    text: str
    answers: list[list[Span]]
    """The spans of each turn, in order and disjoint; empty for a turn that the template does not enclose."""
    layout: "ChatLayout | None" = None
    """The layout that gives the text when the contents are filled in, which shows that each is in its place."""


@dataclass(frozen=True)
class ChatLayout:
    """The rendering of a sequence of roles: the text around the contents, and the answers in it."""

    between: tuple[str, ...]
    """The text before the first content, between two, and after the last."""
    answers: tuple[tuple[int, int, int], ...]
    """(message, characters of the turn before its content, characters of it after its content)."""
    ended: tuple[bool, ...]
    """Whether each answer ends with an end token."""


class AssistantMasker:
    """Finds the assistant's turns in the text of a chat."""

    def __init__(self, template: ChatTemplate, *, ignore_empty_think: bool = False) -> None:
        """``ignore_empty_think`` excludes an empty ``<think></think>`` from the spans."""
        self.template, self.ignore_empty_think = template, ignore_empty_think
        self._layouts: dict[tuple[str, ...], ChatLayout | None] = {}
        self._renderer = Renderer(template, None)

    def __call__(self, chats: Sequence[Chat], tools: Sequence[Any] | None = None) -> list[MaskedChat]:
        """Returns the text of each chat and the spans of the assistant's turns in it.

        Raises `DataError` when they cannot be found, and what the template raises.
        """
        chats = [self.template.read(chat) for chat in chats]
        if self.template.tagged(tools):
            texts, spans = self.template.render_tagged(chats, tools)
            masked = [self._mask_tagged(*one, tools) for one in zip(chats, texts, spans, strict=True)]
        else:
            texts = self.template.render(chats, tools)
            masked = [self._mask(chat, text, tools) for chat, text in zip(chats, texts, strict=True)]
        if self.ignore_empty_think:
            for one in masked:
                for answer in filter(None, one.answers):
                    answer[0] = _after_empty_thought(one.text, answer[0])
        return masked

    def _mask_tagged(self, chat: Chat, text: str, spans: Sequence[Span], tools: Sequence[Any] | None) -> MaskedChat:
        """Assigns the spans that the template's tags enclose to the assistant's turns."""
        numbers = [n for n, message in enumerate(chat) if message["role"] == "assistant"]
        answers = [[span] for span in spans] if len(spans) == len(numbers) else _join_adjacent(spans)
        if len(answers) != len(numbers):
            # answers of several parts, or none: a part belongs to the turn whose words begin last before its end
            starts, answers = self._word_starts(chat, text, tools), [[] for _ in numbers]
            for span in spans:
                last = max((n for n, start in starts.items() if start < span[1]), default=-1)
                turn = next((k for k, n in enumerate(numbers) if n >= last), len(numbers) - 1)
                answers[turn].append(span)
        for answer in filter(None, answers):
            answer[-1] = self._with_end(text, answer[-1], tools)
        return MaskedChat(chat, text, answers)

    def _with_end(self, text: str, span: Span, tools: Sequence[Any] | None) -> Span:
        """Adds an end token that the author of the template left outside the tag."""
        start, end = span
        for close in self._rendering(tools).closes:
            if text.startswith(close, end):
                return start, end + len(close)
        return span

    def _word_starts(self, chat: Chat, text: str, tools: Sequence[Any] | None) -> dict[int, int]:
        """Returns where the words of each message begin, for those that can be found."""
        render = self._rendering(tools)
        places = {n: place_of(render, text, chat, n) for n in range(len(chat))}
        return {n: len(place[0]) for n, place in places.items() if place is not None}

    def _mask(self, chat: Chat, text: str, tools: Sequence[Any] | None) -> MaskedChat:
        if tools is None and all(len(message) == 2 and isinstance(message["content"], str) for message in chat):
            roles = tuple(message["role"] for message in chat)
            if roles not in self._layouts:
                self._layouts[roles] = self._find_layout(roles)
            layout = self._layouts[roles]
            if layout is not None and (spans := match_template(layout, text, chat)) is not None:
                return MaskedChat(chat, text, [[span] for span in spans], layout=layout)
        return MaskedChat(chat, text, [[span] for span in self._turns(text, chat, tools)])

    def _find_layout(self, roles: tuple[str, ...]) -> ChatLayout | None:
        """Returns the layout of chats with these roles; None when the turns depend on their contents."""
        chat = [{"role": role, "content": _word(n)} for n, role in enumerate(roles)]
        try:
            text = self.template.render([chat])[0]
            turns = self._turns(text, chat, None)
        except Exception:
            return None  # a real row will show the error
        between, at = [], 0
        for message in chat:
            if text.count(message["content"]) != 1 or (position := text.find(message["content"], at)) < 0:
                return None
            between.append(text[at:position])
            at = position + len(message["content"])
        between.append(text[at:])
        answers = []
        for n, (start, end) in zip([n for n, role in enumerate(roles) if role == "assistant"], turns, strict=True):
            position = text.index(chat[n]["content"])
            before, after = position - start, end - position - len(chat[n]["content"])
            if not (0 <= before <= len(between[n]) and 0 <= after <= len(between[n + 1])):
                return None
            answers.append((n, before, after))
        ended = tuple(text[start:end].endswith(self.template.end_tokens) for start, end in turns)
        return ChatLayout(tuple(between), tuple(answers), ended)

    def _turns(self, text: str, chat: Chat, tools: Sequence[Any] | None) -> list[Span]:
        """Returns the span of each answer, found by rendering the chat up to it and through it. Raises `DataError`."""
        spans, least, render = [], 0, self._rendering(tools)
        for n, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            turn = TurnLocator(render, text, chat, n)
            start, end = turn.start(), turn.end()
            if start is None or end is None or not least <= start <= end:
                raise DataError(
                    f"message {n + 1}: where the assistant's words begin and end in the rendered chat cannot be found, "
                    "because the template renders it differently when it stands alone, or holds other words; use a "
                    "chat template that encloses them in {% generation %}"
                )
            least = end
            spans.append((start, self._trimmed(text, start, end)))
        return spans

    def _rendering(self, tools: Sequence[Any] | None) -> Renderer:
        if self._renderer.tools != tools:
            self._renderer = Renderer(self.template, tools)
        return self._renderer

    def _trimmed(self, text: str, start: int, end: int) -> int:
        """Returns the end of a turn without white space after its end token, where the assistant has stopped."""
        answer = text[start:end].rstrip()
        return start + len(answer) if answer.endswith(self.template.end_tokens) else end


def _join_adjacent(spans: Sequence[Span]) -> list[list[Span]]:
    """Returns the spans in groups: a span is in the group of the one that ends where it begins."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and groups[-1][-1][1] == span[0]:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _word(n: int) -> str:
    """Returns a content that no template treats specially."""
    return f"Xq{n:06d}qX"


def match_template(layout: ChatLayout, text: str, chat: Chat) -> list[Span] | None:
    """Returns the answers in ``text``, when it is the layout filled with the contents, as they are or stripped."""
    contents = [message["content"] for message in chat]
    for fill in (contents, [content.strip() for content in contents]):
        pieces = [layout.between[0]]
        for content, after in zip(fill, layout.between[1:], strict=True):
            pieces += (content, after)
        if "".join(pieces) == text:
            ends, at = [], 0
            for piece in pieces:
                at += len(piece)
                ends.append(at)
            return [(ends[2 * n] - before, ends[2 * n + 1] + after) for n, before, after in layout.answers]
    return None


def _after_empty_thought(text: str, span: Span) -> Span:
    """Returns a span without the empty thought that it begins with."""
    thought = _EMPTY_THOUGHT.match(text, *span)
    return (thought.end(), span[1]) if thought else span
