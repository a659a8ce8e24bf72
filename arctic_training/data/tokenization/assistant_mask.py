"""Which characters of a rendered chat the assistant said: its turns and their end tokens, nothing else.

Where the template encloses them in ``{% generation %}``, they are what it encloses. Elsewhere the chat is rendered up
to each turn and through it: when the whole begins with both, the turn is what lies between. A template that renders a
turn otherwise once others follow (one that drops earlier thoughts) is asked where the turn's words went by putting a
marker in their place; one whose generation prompt is not how its answers begin, where both part. What cannot be told
exactly is refused.
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
class Found:
    """A chat as it is rendered, and where the assistant's turns stand in it."""

    chat: Chat
    """As the template took it."""
    text: str
    answers: list[list[Span]]
    """The characters of each turn, in order and apart; none of a turn that the template does not enclose."""
    skeleton: "_Skeleton | None" = None
    """What the contents were laid into to get the text, so that every one stands where it must."""


@dataclass(frozen=True)
class _Skeleton:
    """How a sequence of roles is rendered: the text between the contents, and where the answers stand in it."""

    between: tuple[str, ...]
    """What comes before the first content, between two, and after the last."""
    answers: tuple[tuple[int, int, int], ...]
    """(message, characters of the turn before its content, characters of it after its content)."""
    ended: bool
    """Each answer ends with an end token."""


class AssistantMasker:
    """Finds the assistant's turns in the text of a chat."""

    def __init__(self, template: ChatTemplate, *, ignore_empty_think: bool = False) -> None:
        """``ignore_empty_think`` takes an empty ``<think></think>`` out of what is found."""
        self.template, self.ignore_empty_think = template, ignore_empty_think
        self._skeletons: dict[tuple[str, ...], _Skeleton | None] = {}
        self._renderer = Renderer(template, None)

    def __call__(self, chats: Sequence[Chat], tools: Sequence[Any] | None = None) -> list[Found]:
        """The text of each chat, and the characters that the assistant said in it.

        Raises `DataError` when that cannot be told, and what the template raises.
        """
        chats = [self.template.read(chat) for chat in chats]
        if self.template.tagged(tools):
            texts, spans = self.template.render_tagged(chats, tools)
            found = [self._enclosed(*one, tools) for one in zip(chats, texts, spans, strict=True)]
        else:
            texts = self.template.render(chats, tools)
            found = [self._find(chat, text, tools) for chat, text in zip(chats, texts, strict=True)]
        if self.ignore_empty_think:
            for one in found:
                for answer in filter(None, one.answers):
                    answer[0] = _after_empty_thought(one.text, answer[0])
        return found

    def _enclosed(self, chat: Chat, text: str, spans: Sequence[Span], tools: Sequence[Any] | None) -> Found:
        numbers = [n for n, message in enumerate(chat) if message["role"] == "assistant"]
        answers = [[span] for span in spans] if len(spans) == len(numbers) else _side_by_side(spans)
        if len(answers) != len(numbers):
            # an answer in several parts, or in none: whose a part is, the words that stand last before its end say
            starts, answers = self._starts_of_words(chat, text, tools), [[] for _ in numbers]
            for span in spans:
                last = max((n for n, start in starts.items() if start < span[1]), default=-1)
                turn = next((k for k, n in enumerate(numbers) if n >= last), len(numbers) - 1)
                answers[turn].append(span)
        for answer in filter(None, answers):
            answer[-1] = self._with_end(text, answer[-1], tools)
        return Found(chat, text, answers)

    def _with_end(self, text: str, span: Span, tools: Sequence[Any] | None) -> Span:
        """The author of the template may have left the end token outside the tag."""
        start, end = span
        for close in self._rendering(tools).closes:
            if text.startswith(close, end):
                return start, end + len(close)
        return span

    def _starts_of_words(self, chat: Chat, text: str, tools: Sequence[Any] | None) -> dict[int, int]:
        """Where the words of each message begin, of those that can be told."""
        render = self._rendering(tools)
        places = {n: place_of(render, text, chat, n) for n in range(len(chat))}
        return {n: len(place[0]) for n, place in places.items() if place is not None}

    def _find(self, chat: Chat, text: str, tools: Sequence[Any] | None) -> Found:
        if tools is None and all(len(message) == 2 and isinstance(message["content"], str) for message in chat):
            roles = tuple(message["role"] for message in chat)
            if roles not in self._skeletons:
                self._skeletons[roles] = self._skeleton(roles)
            skeleton = self._skeletons[roles]
            if skeleton is not None and (spans := match_template(skeleton, text, chat)) is not None:
                return Found(chat, text, [[span] for span in spans], skeleton=skeleton)
        return Found(chat, text, [[span] for span in self._turns(text, chat, tools)])

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton | None:
        """None when the turns of such a chat depend on what is said in them."""
        chat = [{"role": role, "content": _word(n)} for n, role in enumerate(roles)]
        try:
            text = self.template.render([chat])[0]
            turns = self._turns(text, chat, None)
        except Exception:
            return None  # whatever is wrong will be said of a real row
        between, at = [], 0
        for message in chat:
            if text.count(message["content"]) != 1 or (found := text.find(message["content"], at)) < 0:
                return None
            between.append(text[at:found])
            at = found + len(message["content"])
        between.append(text[at:])
        answers = []
        for n, (start, end) in zip([n for n, role in enumerate(roles) if role == "assistant"], turns, strict=True):
            found = text.index(chat[n]["content"])
            before, after = found - start, end - found - len(chat[n]["content"])
            if not (0 <= before <= len(between[n]) and 0 <= after <= len(between[n + 1])):
                return None
            answers.append((n, before, after))
        ended = all(text[start:end].endswith(self.template.ends) for start, end in turns)
        return _Skeleton(tuple(between), tuple(answers), ended)

    def _turns(self, text: str, chat: Chat, tools: Sequence[Any] | None) -> list[Span]:
        """Each answer's characters, by rendering the chat up to it and through it."""
        spans, least, render = [], 0, self._rendering(tools)
        for n, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            turn = TurnLocator(render, text, chat, n)
            start, end = turn.start(), turn.end()
            if start is None or end is None or not least <= start <= end:
                raise DataError(
                    f"message {n + 1}: where the assistant's words begin and end in the rendered chat cannot be told, "
                    "for the template renders it otherwise when it stands alone, or holds other words; use a chat "
                    "template that encloses them in {% generation %}"
                )
            least = end
            spans.append((start, self._trimmed(text, start, end)))
        return spans

    def _rendering(self, tools: Sequence[Any] | None) -> Renderer:
        if self._renderer.tools != tools:
            self._renderer = Renderer(self.template, tools)
        return self._renderer

    def _trimmed(self, text: str, start: int, end: int) -> int:
        """White space after the token that ends a turn is not the assistant's: it has stopped there."""
        said = text[start:end].rstrip()
        return start + len(said) if said.endswith(self.template.ends) else end


def _side_by_side(spans: Sequence[Span]) -> list[list[Span]]:
    """The spans, those together of which one begins where another ends."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and groups[-1][-1][1] == span[0]:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _word(n: int) -> str:
    """A content that no template looks at."""
    return f"Xq{n:06d}qX"


def match_template(skeleton: _Skeleton, text: str, chat: Chat) -> list[Span] | None:
    """The answers in ``text``, when it is the skeleton filled with the contents, or with the contents stripped."""
    contents = [message["content"] for message in chat]
    for fill in (contents, [content.strip() for content in contents]):
        pieces = [skeleton.between[0]]
        for content, after in zip(fill, skeleton.between[1:], strict=True):
            pieces += (content, after)
        if "".join(pieces) == text:
            ends, at = [], 0
            for piece in pieces:
                at += len(piece)
                ends.append(at)
            return [(ends[2 * n] - before, ends[2 * n + 1] + after) for n, before, after in skeleton.answers]
    return None


def _after_empty_thought(text: str, span: Span) -> Span:
    thought = _EMPTY_THOUGHT.match(text, *span)
    return (thought.end(), span[1]) if thought else span
