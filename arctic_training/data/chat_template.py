"""Renders chats with a tokenizer's template."""

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from arctic_training.errors import DataError

Message = Mapping[str, Any]
Chat = Sequence[Message]
Span = tuple[int, int]
"""Characters of a text, from and up to."""

PATIENCE = 10.0
"""Seconds of the processor that a template may take for a small chat, however busy the machine is."""

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplate:
    """Turns messages into the text a model reads."""

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> None:
        """``arguments`` are handed to the template. Raises `DataError` when the tokenizer has no template."""
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                f"chats need a chat template, and the tokenizer {tokenizer.name_or_path or '(unnamed)'} has none; "
                "set tokenizer.chat_template, or use the tokenizer of a chat model"
            )
        self.tokenizer, self.arguments = tokenizer, dict(arguments or {})
        self.eos = str(tokenizer.eos_token or "")
        tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        self.ends = tuple(token for token in tokens if token.strip())
        """Tokens that may end a turn: every added one that is not white space."""
        self._try()

    def _try(self) -> None:
        """Raises `DataError` for a template that is none, that reaches out of its sandbox, or that does not end."""
        from jinja2.exceptions import SecurityError, TemplateSyntaxError

        try:
            with _at_most(PATIENCE):
                self.render([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])
        except TemplateSyntaxError as error:
            raise DataError(f"the chat template is none: {error.message} (its line {error.lineno})") from error
        except SecurityError as error:
            raise DataError(f"the chat template does what none may: {error}") from error
        except TimeoutError:
            raise DataError(f"the chat template takes more than {PATIENCE} s for a chat of two words") from None
        except Exception:
            return  # it may refuse such a chat, and take those that there are

    def tagged(self, tools: Sequence[Any] | None = None) -> bool:
        """Whether the template itself says what the assistant says, by ``{% generation %}``."""
        return bool(_GENERATION_TAG.search(self.tokenizer.get_chat_template(None, tools)))

    def render(
        self, chats: Sequence[Chat], tools: Sequence[Any] | None = None, *, generation_prompt: bool = False
    ) -> list[str]:
        """The text of each chat; ``generation_prompt`` adds an answer's header. Raises what the template raises."""
        return self._render(chats, tools, generation_prompt, tags=False)[0]

    def render_tagged(
        self, chats: Sequence[Chat], tools: Sequence[Any] | None = None
    ) -> tuple[list[str], list[list[Span]]]:
        """The text of each chat and what ``{% generation %}`` encloses in it."""
        return self._render(chats, tools, False, tags=True)

    def _render(
        self, chats: Sequence[Chat], tools: Sequence[Any] | None, prompt: bool, *, tags: bool
    ) -> tuple[list[str], list[list[Span]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        return render_jinja_template(  # type: ignore[no-any-return]
            conversations=[[_present(message) for message in chat] for chat in chats],
            tools=tools,
            chat_template=self.tokenizer.get_chat_template(None, tools),
            return_assistant_tokens_mask=tags,
            add_generation_prompt=prompt,
            **{**self.tokenizer.special_tokens_map, **self.arguments},
        )


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside when the time is over. Only a main thread can be interrupted so."""

    def over(number: int, frame: Any) -> None:
        raise TimeoutError

    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        yield
        return
    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _present(message: Message) -> dict[str, Any]:
    """A message without what is None: templates test for keys, and would print the word None."""
    return {key: value for key, value in message.items() if value is not None}
