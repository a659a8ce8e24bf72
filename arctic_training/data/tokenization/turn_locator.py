"""Where one answer stands in a rendered chat, found by rendering parts of the chat, and the chat with other words."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arctic_training.data.tokenization.chat_template import MARKER, Chat, ChatTemplate, Message

_NEXT = "ZqnextqZ"
_UNDER_WAY = re.compile(r"<[^<>\s]*\Z|\[[^\[\]\s]*\Z|\w+\Z")
"""A token, a tag or a word that a text breaks off in."""
_SPACE = re.compile(r"\s*")
_REST = re.compile(r"\A[^<>\[\]\s]*[>\]]")
"""What is left of one that a text begins in."""


class Renderer:
    """Renders parts of chats with one template and one list of tools, and knows how the template ends an answer."""

    def __init__(self, template: ChatTemplate, tools: Sequence[Any] | None) -> None:
        self.template, self.tools = template, tools

    def __call__(self, chat: Chat, *, prompt: bool = False) -> str | None:
        """The text; None when the template refuses it, as it may a part of a chat that it takes as a whole."""
        try:
            return self.template.render([chat], self.tools, generation_prompt=prompt)[0]
        except Exception:
            return None

    def split(self, chat: Chat, *, prompt: bool = False) -> tuple[str, str] | None:
        """The text before and after the marker in ``chat``."""
        text = self(chat, prompt=prompt)
        parts = [] if text is None else text.split(MARKER)
        return (parts[0], parts[1]) if len(parts) == 2 else None

    def ended(self, text: str) -> bool:
        return text.rstrip().endswith(self.template.ends)

    @functools.cached_property
    def closes(self) -> tuple[str, ...]:
        """Returns the texts with an end token that may stand behind the words of an answer."""
        ending = self.ending
        closes = (self.template.eos, ending.close.rstrip(), ending.last.rstrip())
        return tuple(close for close in closes if close.endswith(self.template.ends))

    @functools.cached_property
    def ending(self) -> "Ending":
        """How a plain answer ends: alone, before a question, and before another answer."""
        question, answer = {"role": "user", "content": _NEXT}, {"role": "assistant", "content": MARKER}
        alone, asked = self.split([question, answer]), self.split([question, answer, question])
        prompted, first = self.split([question, answer], prompt=True), self.split([{**question, "content": MARKER}])
        if alone is None or asked is None or first is None or _NEXT not in asked[1]:
            return Ending("" if alone is None else alone[1], "", "" if alone is None else alone[1])
        last, followed = alone[1], asked[1].partition(_NEXT)[0]
        header = self._opening(first[0])
        shared = "" if prompted is None else self._before(header, common(followed, prompted[1]))
        core = last.rstrip()
        if last == followed and self.ended(shared) and core != shared.rstrip():
            return Ending(shared, last[len(shared) :], shared)  # a header, though no message follows
        if followed.startswith(core):
            written = followed.removesuffix(_common_end(followed, first[0]))
            if not self.ended(core) and self.ended(written) and len(written) > len(core):
                return Ending(written, "", last)  # it is the next message that writes the end of this one
            return Ending(last if followed.startswith(last) else core, "", last)
        close = self._before(header, common(last, followed))
        rest = last[len(close) :]
        if rest.strip() != self.template.eos and header and header in rest:
            return Ending(close, rest, close)  # the header of another message than the one that follows
        until = max((close.rfind(token) + len(token) for token in self.template.ends if token in close), default=0)
        if last[until:].strip() and until and prompted == alone and first[1].endswith(last[until:]):
            return Ending(last[:until], last[until:], last[:until])  # an answer's header, wherever a chat ends
        return Ending(close if self.ended(close) else shared, "", last)

    def _opening(self, text: str) -> str:
        """The token that a text opens its first message with."""
        text = text.removeprefix(str(self.template.tokenizer.bos_token or "")).lstrip()
        return max((token for token in self.template.ends if text.startswith(token)), key=len, default="")

    @staticmethod
    def _before(token: str, text: str) -> str:
        return text.partition(token)[0] if token else text


@dataclass(frozen=True)
class Ending:
    """What a template writes after the words of an answer."""

    close: str
    """When other messages follow."""
    surplus: str
    """Of the next message already, when none follows."""
    last: str
    """When none follows, without the surplus."""


class TurnLocator:
    """Message ``n`` of ``chat``, which is the assistant's, in ``text``, which is the chat rendered."""

    def __init__(self, render: Renderer, text: str, chat: Chat, n: int) -> None:
        self.render, self.text, self.chat, self.n = render, text, list(chat), n
        self.before = render(self.chat[:n])
        self.prompt = render(self.chat[:n], prompt=True)
        """What the model would be asked with, its answer's header included; None when the template refuses it."""
        before = self.before
        self.header = None if self.prompt is None or before is None else self.prompt.removeprefix(before)
        if self.prompt is not None and self.prompt == before and not render.ending.surplus:
            # a template without a generation prompt: a plain answer shows what comes before its words
            plain = render.split([*self.chat[:n], {"role": "assistant", "content": MARKER}])
            if plain is not None and plain[0].startswith(before) and plain[0].strip() != before.strip():
                self.prompt, self.header = plain[0], plain[0].removeprefix(before)

    def start(self) -> int | None:
        """The first character of the answer; None when it cannot be told."""
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
        """Where generation prompt and answer part: the one opens a thought, say, and the other has none, or another."""
        if self.prompt is None:
            return None
        if self.before is not None and self.text.startswith(self.before.rstrip()):
            shared = common(self.text, self.prompt)
            if len(shared) > len(self.before):
                return len(shared)
        if not self.n or (words := place_of(self.render, self.text, self.chat, self.n - 1)) is None:
            return None
        asked = self.render.split(_marked(self.chat[: self.n], self.n - 1), prompt=True)
        shared = "" if asked is None else common(words[1], asked[1])
        return len(self.text) - len(words[1]) + len(shared) if shared.strip() else None

    def end(self) -> int | None:
        """The character after the answer's end token, or white space that follows it; None when it cannot be told."""
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
        """The end of the turn, from where its own words are, or the next message's."""
        close = self.render.ending.close
        if self.place is not None and self.place[1].startswith(close):
            return len(self.text) - len(self.place[1]) + len(close)
        # the turn ends with the last end of a turn before the words of the next message
        following = self.render.split(_marked(self.chat, self.n + 1))
        if following is None or not close or not self.text.startswith(following[0]):
            return None
        found = following[0].rfind(close)
        return None if found < 0 else found + len(close)

    @functools.cached_property
    def place(self) -> tuple[str, str] | None:
        """What stands before and after the words of the turn."""
        return place_of(self.render, self.text, self.chat, self.n)


def place_of(render: Renderer, text: str, chat: Chat, n: int) -> tuple[str, str] | None:
    """Returns what stands before and after the words of message ``n``, when others there change nothing else."""
    place = render.split(_marked(chat, n))
    if place is None or len(place[0]) + len(place[1]) > len(text):
        return None
    return place if text.startswith(place[0]) and text.endswith(place[1]) else None


def common(one: str, other: str) -> str:
    """Returns what both texts begin with, white space apart, up to the token, tag or word in which they part."""
    at = place = _alike(one, other)
    while True:  # the lines of a template may be indented here and not there
        here, there = _after_space(one, at), _after_space(other, place)
        if (here, there) == (at, place) or here == len(one) or there == len(other):
            break
        same = _alike(one[here:], other[there:])
        if not same:
            break
        at, place = here + same, there + same
    if at == len(one) or place == len(other):
        return one[:at]
    under_way = _UNDER_WAY.search(one, 0, at)
    within = re.compile(r"\w").match
    if under_way is None or not (under_way.group()[0] in "<[" or within(one, at) or within(other, place)):
        return one[:at]
    return one[: under_way.start()]


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _common_end(one: str, other: str) -> str:
    """The end of both, from the first token or tag that both have from its beginning."""
    return _REST.sub("", one[len(one) - _alike(one[::-1], other[::-1]) :])


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if one[:middle] == other[:middle] else (least, middle - 1)
    return least


def _marked(chat: Chat, n: int) -> list[Message]:
    return [{**message, "content": MARKER} if i == n else message for i, message in enumerate(chat)]
