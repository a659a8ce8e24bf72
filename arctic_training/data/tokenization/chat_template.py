"""Renders chats with the chat template of a tokenizer."""

import functools
import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from arctic_training.data.formats.json_text import RepeatedKeyError, loads
from arctic_training.data.formats.messages import part_text
from arctic_training.data.formats.remarks import remark
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Chat = Sequence[Message]
Span = tuple[int, int]
"""Characters of a text: the first, and the one after the last."""

RENDER_TIMEOUT = 10.0
"""Seconds of processor time that a template may take for a small chat, however busy the machine is."""
MARKER = "ZqmarkerqZ"
"""A content that no template treats specially, and no message holds."""

_rendering = threading.Lock()
"""Held while a template is rendered: transformers keeps the spans of answers in the compiled template, which is that of
all threads, and one of them reads a stream ahead."""


def _renew_lock() -> None:
    global _rendering
    _rendering = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)  # a thread that the child has not may hold it

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_GENERATION_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_KNOWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now")
_TOOL_ARGUMENTS = {"zqkeyqz": "zqvalueqz"}


class ChatTemplate:
    """Turns messages into the text a model reads."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", arguments: Mapping[str, Any] | None = None) -> None:
        """``arguments`` are passed to the template. Raises `DataError` when the tokenizer has no template."""
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                f"chats need a chat template, and the tokenizer {tokenizer.name_or_path or '(unnamed)'} has none; "
                "set tokenizer.chat_template, or use the tokenizer of a chat model"
            )
        self.tokenizer, self.arguments = tokenizer, dict(arguments or {})
        self.eos = str(tokenizer.eos_token or "")
        tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        self.end_tokens = tuple(token for token in tokens if token.strip())
        """Tokens that may end a turn: all added tokens that are not white space."""
        self._needs_parts = False
        """Whether the template reads contents as lists of parts only, as those of vision models do."""
        self._needs_parts = not self._renders(MARKER) and self._renders([{"type": "text", "text": MARKER}])

    def _renders(self, content: object) -> bool:
        """Returns whether a chat with this content is rendered with its words.

        Raises `DataError` for a template that does not parse, that leaves its sandbox, or that does not end.
        """
        from jinja2.exceptions import SecurityError, TemplateSyntaxError

        chat: Chat = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        try:
            with _time_limit(RENDER_TIMEOUT):
                text = self.render([chat])[0]
        except TemplateSyntaxError as error:
            raise DataError(f"the chat template does not parse: {error.message} (its line {error.lineno})") from error
        except SecurityError as error:
            raise DataError(f"the chat template leaves its sandbox: {error}") from error
        except TimeoutError:
            raise DataError(f"the chat template takes more than {RENDER_TIMEOUT} s for a chat of two words") from None
        except Exception:
            return False  # it may refuse this chat, and take those of the data
        return MARKER in text and repr(content)[1:] not in text

    @functools.cached_property
    def _arguments_as_text(self) -> bool:
        """Returns whether the template prints the arguments of a tool call as they are: they must then be JSON text."""
        for arguments in (_TOOL_ARGUMENTS, json.dumps(_TOOL_ARGUMENTS)):
            call = {"type": "function", "id": "abcdefghi", "function": {"name": "zqnameqz", "arguments": arguments}}
            chat: Chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
            try:
                text = self.render([chat])[0]
            except Exception:  # it joins them to a text, or reads them as a mapping
                continue
            if _TOOL_ARGUMENTS["zqkeyqz"] in text and repr(_TOOL_ARGUMENTS) not in text:
                return isinstance(arguments, str)
        return False

    @property
    def variables(self) -> list[str]:
        """The variables that the template reads and nothing sets: its switches."""
        from jinja2 import Environment, meta

        source = self.tokenizer.get_chat_template(None, None)
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION_TAGS.sub("", source))
        known = {*_KNOWN_VARIABLES, *self.tokenizer.special_tokens_map, *self.arguments}
        return sorted(meta.find_undeclared_variables(parsed) - known)

    def read(self, chat: Chat) -> Chat:
        """Returns the messages as the template takes them: text for lists of text parts, and arguments in its form.

        Keys whose value is None are removed: templates test for keys, and would print the word None.
        """
        return [self._read(message) for message in chat]

    def _read(self, message: Message) -> dict[str, Any]:
        if len(message) == 2 and isinstance(message.get("content"), str):
            return dict(message)  # role and text, as most have
        read = {key: value for key, value in message.items() if value is not None}
        if isinstance(read.get("content"), list):
            texts = [part_text(part) for part in read["content"]]
            if None not in texts:
                read["content"] = "".join(filter(None, texts))
        if isinstance(read.get("tool_calls"), list):
            read["tool_calls"] = [self._call(call) for call in read["tool_calls"]]
        return read

    def _call(self, call: object) -> object:
        """Returns a tool call with its arguments as a mapping or JSON text, whichever the template takes."""
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._call(call["function"])}
        arguments = call.get("arguments")
        if isinstance(arguments, str) and not self._arguments_as_text:
            try:
                parsed = loads(arguments)
            except RepeatedKeyError as error:
                raise DataError(f"the arguments of the call of {call.get('name')}: {error}") from None
            except (ValueError, RecursionError):
                parsed = None
            if isinstance(parsed, dict):
                return {**call, "arguments": parsed}
            remark("has tool calls whose arguments are no JSON of a mapping, so that they are rendered as any text")
        if isinstance(arguments, Mapping) and self._arguments_as_text:
            return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return call

    def tagged(self, tools: Sequence[Any] | None = None) -> bool:
        """Returns whether the template encloses the assistant's turns in ``{% generation %}`` tags."""
        return bool(_GENERATION_TAG.search(self.tokenizer.get_chat_template(None, tools)))

    def render(
        self, chats: Sequence[Chat], tools: Sequence[Any] | None = None, *, generation_prompt: bool = False
    ) -> list[str]:
        """Returns the text of each chat; ``generation_prompt`` adds the header of an answer.

        Raises what the template raises.
        """
        return self._render(chats, tools, generation_prompt, tags=False)[0]

    def render_tagged(
        self, chats: Sequence[Chat], tools: Sequence[Any] | None = None
    ) -> tuple[list[str], list[list[Span]]]:
        """Returns the text of each chat and the spans that ``{% generation %}`` encloses in it."""
        return self._render(chats, tools, False, tags=True)

    def _render(
        self, chats: Sequence[Chat], tools: Sequence[Any] | None, prompt: bool, *, tags: bool
    ) -> tuple[list[str], list[list[Span]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        if self._needs_parts:
            chats = [[_with_parts(message) for message in chat] for chat in chats]
        with _rendering:
            return render_jinja_template(  # type: ignore[no-any-return]
                conversations=chats,
                tools=tools,
                chat_template=self.tokenizer.get_chat_template(None, tools),
                return_assistant_tokens_mask=tags,
                add_generation_prompt=prompt,
                **{**self.tokenizer.special_tokens_map, **self.arguments},
            )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside after ``seconds`` of processor time; in a main thread only, which gets the signals."""

    def raise_timeout(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        yield
        return
    before = signal.signal(signal.SIGVTALRM, raise_timeout)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _with_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
