"""Where one answer stands in a rendered chat, found by rendering parts of the chat, and the chat with other words."""

from collections.abc import Sequence
from typing import Any

from arctic_training.data.chat_template import Chat, ChatTemplate, Message

_MARKER = "ZqmarkerqZ"
"""A content that no template looks at, and no message holds."""


class Turn:
    """Message ``n`` of ``chat``, which is the assistant's, in ``text``, which is the chat rendered."""

    def __init__(self, template: ChatTemplate, text: str, chat: Chat, n: int, tools: Sequence[Any] | None) -> None:
        self.template, self.text, self.chat, self.n, self.tools = template, text, list(chat), n, tools
        before = self._render(self.chat[:n])
        self.prompt = self._render(self.chat[:n], prompt=True)
        """What the model would be asked with, its answer's header included; None when the template refuses it."""
        self.header = None if self.prompt is None or before is None else self.prompt.removeprefix(before)
        if self.prompt is not None and self.prompt == before:
            # a template without a generation prompt: a plain answer shows what comes before its words
            plain = self._split([*self.chat[:n], {"role": "assistant", "content": _MARKER}])
            if plain is not None and plain[0].startswith(before) and plain[0].strip() != before.strip():
                self.prompt, self.header = plain[0], plain[0].removeprefix(before)

    def start(self) -> int | None:
        """The first character of the answer; None when it cannot be told."""
        if self.prompt is not None and self.text.startswith(self.prompt):
            return len(self.prompt)
        if (place := self._place()) is None:
            return None
        known = self.prompt is None or place[0].endswith(self.header or "") or self.prompt.startswith(place[0])
        return len(place[0]) if known else None

    def end(self) -> int | None:
        """The character after the answer's end token, or white space that follows it; None when it cannot be told."""
        through = self.text if self.n == len(self.chat) - 1 else self._render(self.chat[: self.n + 1])
        if through is not None and self.text.startswith(through):
            return len(through)
        if through is not None and self.template.eos and through.endswith(self.template.eos):
            # some templates end the whole chat, not each answer, with the end token
            through = through.removesuffix(self.template.eos)
            if through.rstrip().endswith(self.template.ends) and self.text.startswith(through):
                return len(through)
        end = self._end_by_words()
        following = self._split(_marked(self.chat, self.n + 1))
        if end is None or following is None or not self.text.startswith(following[0]) or len(following[0]) < end:
            return None  # the words of the next message must come after it
        return end

    def _end_by_words(self) -> int | None:
        """The end of the turn, from where its own words are, or the next message's."""
        plain = self._split([*self.chat[: self.n], {"role": "assistant", "content": _MARKER}])
        if plain is None:
            return None
        if (place := self._place()) is not None and place[1].startswith(plain[1]):
            return len(self.text) - len(place[1]) + len(plain[1])
        # the turn ends with the last end of a turn before the words of the next message
        following = self._split(_marked(self.chat, self.n + 1))
        if following is None or not plain[1] or not self.text.startswith(following[0]):
            return None
        found = following[0].rfind(plain[1])
        return None if found < 0 else found + len(plain[1])

    def _place(self) -> tuple[str, str] | None:
        """What stands before and after the words of the turn, when putting others there changes nothing else."""
        place = self._split(_marked(self.chat, self.n))
        if place is None or len(place[0]) + len(place[1]) > len(self.text):
            return None
        return place if self.text.startswith(place[0]) and self.text.endswith(place[1]) else None

    def _split(self, chat: Chat) -> tuple[str, str] | None:
        """The text before and after the marker in ``chat``."""
        text = self._render(chat)
        parts = [] if text is None else text.split(_MARKER)
        return (parts[0], parts[1]) if len(parts) == 2 else None

    def _render(self, chat: Chat, *, prompt: bool = False) -> str | None:
        try:
            return self.template.render([chat], self.tools, generation_prompt=prompt)[0]
        except Exception:
            return None  # a template may refuse part of a chat that it takes as a whole


def _marked(chat: Chat, n: int) -> list[Message]:
    return [{**message, "content": _MARKER} if i == n else message for i, message in enumerate(chat)]
