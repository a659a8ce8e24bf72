"""Finds the keys of messages that a chat template does not read."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from arctic_training.data.formats.remarks import UNREAD_KEYS, remark
from arctic_training.data.tokenization.chat_template import Chat, ChatTemplate

_MAX_TRIES = 8
"""Chats without an effect of a key after which the key counts as never read."""


class MessageKeys:
    """Remarks on keys that the template does not read: a chat is rendered alike without them."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._known = {"role", "content"}
        self._tries: Counter[str] = Counter()

    def check(self, chat: Chat, tools: Sequence[Any] | None) -> None:
        """Checks the keys of a chat that the template takes, other than those known already."""
        for key in sorted({key for message in chat for key in message} - self._known):
            is_read = self._is_read(key, chat, tools)
            remark(UNREAD_KEYS, key, holds=not is_read)
            self._tries[key] += 1
            if is_read or self._tries[key] == _MAX_TRIES:
                self._known.add(key)

    def _is_read(self, key: str, chat: Chat, tools: Sequence[Any] | None) -> bool:
        without = [{name: value for name, value in message.items() if name != key} for message in chat]
        try:
            (text,) = self.template.render([chat], tools)
            return self.template.render([without], tools)[0] != text
        except Exception:
            return True  # the template needs it
