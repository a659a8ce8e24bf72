"""Keys of messages that a chat template does not read."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from arctic_training.data.formats.remarks import UNREAD_KEYS, remark
from arctic_training.data.tokenization.chat_template import Chat, ChatTemplate

_TRIES = 8
"""Chats in which a key is looked for in vain before it counts as one that is never read."""


class MessageKeys:
    """Remarks on keys that nothing reads: the chat is rendered alike without them."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._settled = {"role", "content"}
        self._tries: Counter[str] = Counter()

    def look(self, chat: Chat, tools: Sequence[Any] | None) -> None:
        """Looks for keys that are not settled in a chat that the template takes."""
        for key in sorted({key for message in chat for key in message} - self._settled):
            is_read = self._is_read(key, chat, tools)
            remark(UNREAD_KEYS, key, holds=not is_read)
            self._tries[key] += 1
            if is_read or self._tries[key] == _TRIES:
                self._settled.add(key)

    def _is_read(self, key: str, chat: Chat, tools: Sequence[Any] | None) -> bool:
        without = [{name: value for name, value in message.items() if name != key} for message in chat]
        try:
            (text,) = self.template.render([chat], tools)
            return self.template.render([without], tools)[0] != text
        except Exception:
            return True  # the template misses it
