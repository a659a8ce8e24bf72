"""Locates one assistant turn in a rendered chat, by rendering parts of the chat, and the chat with other words."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arctic_training.data.tokenization.chat_template import MARKER, Chat, ChatTemplate, Message

_NEXT = "ZqnextqZ"
_UNFINISHED = re.compile(r"<[^<>\s]*\Z|\[[^\[\]\s]*\Z|\w+\Z")
"""An unfinished token, tag or word at the end of a text."""
_SPACE = re.compile(r"\s*")
_REST = re.compile(r"\A[^<>\[\]\s]*[>\]]")
"""The rest of a token or tag at the beginning of a text."""


class Renderer:
    """Renders parts of chats with one template and one list of tools, and finds how the template ends an answer."""

    def __init__(self, template: ChatTemplate, tools: Sequence[Any] | None) -> None:
        self.template, self.tools = template, tools

    def __call__(self, chat: Chat, *, prompt: bool = False) -> str | None:
        """Returns the text; None when the template refuses the chat, which may be a part of one that it takes."""
        try:
            return self.template.render([chat], self.tools, generation_prompt=prompt)[0]
        except Exception:
            return None

    def split(self, chat: Chat, *, prompt: bool = False) -> tuple[str, str] | None:
        """Returns the text before and after the marker in ``chat``; None when the marker is not there once."""
        text = self(chat, prompt=prompt)
        parts = [] if text is None else text.split(MARKER)
        return (parts[0], parts[1]) if len(parts) == 2 else None

    def ended(self, text: str) -> bool:
        """Returns whether a text ends with an end token."""
        return text.rstrip().endswith(self.template.end_tokens)

    @functools.cached_property
    def closes(self) -> tuple[str, ...]:
        """The texts with an end token that may follow the words of an answer."""
        ending = self.ending
        closes = (self.template.eos, ending.close.rstrip(), ending.last.rstrip())
        return tuple(close for close in closes if close.endswith(self.template.end_tokens))

    @functools.cached_property
    def ending(self) -> "Ending":
        """The end of a plain answer: last in the chat, before a question, and before another answer."""
        question, answer = {"role": "user", "content": _NEXT}, {"role": "assistant", "content": MARKER}
        alone, followed_by = self.split([question, answer]), self.split([question, answer, question])
        prompted, first = self.split([question, answer], prompt=True), self.split([{**question, "content": MARKER}])
        if alone is None or followed_by is None or first is None or _NEXT not in followed_by[1]:
            return Ending("" if alone is None else alone[1], "", "" if alone is None else alone[1])
        last, followed = alone[1], followed_by[1].partition(_NEXT)[0]
        header = self._opening(first[0])
        shared = "" if prompted is None else self._before(header, common(followed, prompted[1]))
        core = last.rstrip()
        if last == followed and self.ended(shared) and core != shared.rstrip():
            return Ending(shared, last[len(shared) :], shared)  # it writes a header, though no message follows
        if followed.startswith(core):
            written = followed.removesuffix(_common_end(followed, first[0]))
            if not self.ended(core) and self.ended(written) and len(written) > len(core):
                return Ending(written, "", last)  # the next message writes the end of this one
            return Ending(last if followed.startswith(last) else core, "", last)
        close = self._before(header, common(last, followed))
        rest = last[len(close) :]
        if rest.strip() != self.template.eos and header and header in rest:
            return Ending(close, rest, close)  # the header of another message than the one that follows
        until = max(
            (close.rfind(token) + len(token) for token in self.template.end_tokens if token in close), default=0
        )
        if last[until:].strip() and until and prompted == alone and first[1].endswith(last[until:]):
            return Ending(last[:until], last[until:], last[:until])  # an answer's header, wherever a chat ends
        return Ending(close if self.ended(close) else shared, "", last)

    def _opening(self, text: str) -> str:
        """Returns the token with which a text opens its first message."""
        text = text.removeprefix(str(self.template.tokenizer.bos_token or "")).lstrip()
        return max((token for token in self.template.end_tokens if text.startswith(token)), key=len, default="")

    @staticmethod
    def _before(token: str, text: str) -> str:
        return text.partition(token)[0] if token else text


@dataclass(frozen=True)
class Ending:
    """The text that a template writes after the words of an answer."""

    close: str
    """The end where other messages follow."""
    surplus: str
    """What belongs to a next message already, where none follows."""
    last: str
    """The end where no message follows, without the surplus."""


class TurnLocator:
    """Locates message ``n`` of ``chat``, which is the assistant's, in ``text``, the rendered chat."""

    def __init__(self, render: Renderer, text: str, chat: Chat, n: int) -> None:
        self.render, self.text, self.chat, self.n = render, text, list(chat), n
        self.before = render(self.chat[:n])
        self.prompt = render(self.chat[:n], prompt=True)
        """The prompt for the answer, with its header; None when the template refuses it."""
        before = self.before
        self.header = None if self.prompt is None or before is None else self.prompt.removeprefix(before)
        if self.prompt is not None and self.prompt == before and not render.ending.surplus:
            # a template without a generation prompt: a plain answer shows what comes before its words
            plain = render.split([*self.chat[:n], {"role": "assistant", "content": MARKER}])
            if plain is not None and plain[0].startswith(before) and plain[0].strip() != before.strip():
                self.prompt, self.header = plain[0], plain[0].removeprefix(before)

    def start(self) -> int | None:
        """Returns the first character of the answer; None when it cannot be found."""
        if self.prompt is not None and self.text.startswith(self.prompt):
            return len(self.prompt)
        if self.place is not None and self.header and self.place[0].endswith(self.header):
            return len(self.place[0])
        if (start := self._start_by_header()) is not None:
            return start
        if self.place is not None and (not self.header or (self.prompt or "").startswith(self.place[0])):
            return len(self.place[0])
        return None

    def _start_by_header(self) -> int | None:
        """Returns where generation prompt and answer part, as where one opens a thought and the other does not."""
        if self.prompt is None:
            return None
        if self.before is not None and self.text.startswith(self.before.rstrip()):
            shared = common(self.text, self.prompt)
            if len(shared) > len(self.before):
                return len(shared)
        if not self.n or (words := place_of(self.render, self.text, self.chat, self.n - 1)) is None:
            return None
        prompt = self.render.split(_marked(self.chat[: self.n], self.n - 1), prompt=True)
        shared = "" if prompt is None else common(words[1], prompt[1])
        return len(self.text) - len(words[1]) + len(shared) if shared.strip() else None

    def end(self) -> int | None:
        """Returns the character after the answer's end token, or after white space behind it; None when not found."""
        ending = self.render.ending
        if self.n == len(self.chat) - 1:
            return len(self.text.removesuffix(ending.surplus))
        through = self.render(self.chat[: self.n + 1])
        if through is not None:
            through = through.removesuffix(ending.surplus)
            closed = through.removesuffix(ending.last) + ending.close
            if through.endswith(ending.last) and self.text.startswith(closed):
                return len(closed)
            if self.text.startswith(through):
                return len(through)
        end = self._end_by_words()
        following = self.render.split(_marked(self.chat, self.n + 1))
        if end is None or following is None or not self.text.startswith(following[0]) or len(following[0]) < end:
            return None  # the words of the next message must come after it
        return end

    def _end_by_words(self) -> int | None:
        """Returns the end of the turn by the place of its own words, or of the next message's."""
        close = self.render.ending.close
        if self.place is not None and self.place[1].startswith(close):
            return len(self.text) - len(self.place[1]) + len(close)
        # the turn ends with the last end of a turn before the words of the next message
        following = self.render.split(_marked(self.chat, self.n + 1))
        if following is None or not close or not self.text.startswith(following[0]):
            return None
        position = following[0].rfind(close)
        return None if position < 0 else position + len(close)

    @functools.cached_property
    def place(self) -> tuple[str, str] | None:
        """The text before and after the words of the turn."""
        return place_of(self.render, self.text, self.chat, self.n)


def place_of(render: Renderer, text: str, chat: Chat, n: int) -> tuple[str, str] | None:
    """Returns the text before and after the words of message ``n``; None when other words there change more."""
    place = render.split(_marked(chat, n))
    if place is None or len(place[0]) + len(place[1]) > len(text):
        return None
    return place if text.startswith(place[0]) and text.endswith(place[1]) else None


def common(one: str, other: str) -> str:
    """Returns the common beginning of two texts, white space apart, up to the token, tag or word where they part."""
    at = place = _common_length(one, other)
    while True:  # the lines of a template may be indented here and not there
        first, second = _after_space(one, at), _after_space(other, place)
        if (first, second) == (at, place) or first == len(one) or second == len(other):
            break
        same = _common_length(one[first:], other[second:])
        if not same:
            break
        at, place = first + same, second + same
    if at == len(one) or place == len(other):
        return one[:at]
    unfinished = _UNFINISHED.search(one, 0, at)
    within = re.compile(r"\w").match
    if unfinished is None or not (unfinished.group()[0] in "<[" or within(one, at) or within(other, place)):
        return one[:at]
    return one[: unfinished.start()]


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None
    return space.end()


def _common_end(one: str, other: str) -> str:
    """Returns the common end of two texts, from the first token or tag that is complete in it."""
    return _REST.sub("", one[len(one) - _common_length(one[::-1], other[::-1]) :])


def _common_length(one: str, other: str) -> int:
    """Returns the length of the common beginning of two texts."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if one[:middle] == other[:middle] else (least, middle - 1)
    return least


def _marked(chat: Chat, n: int) -> list[Message]:
    return [{**message, "content": MARKER} if i == n else message for i, message in enumerate(chat)]
