"""A conversation with a model, turn by turn."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.errors.types import InputError
from arctic_training.generation.config import GenerationKeys
from arctic_training.generation.generate import generate
from arctic_training.generation.prompts import Message, encode_prompt
from arctic_training.generation.sampling import seeded_uniforms
from arctic_training.generation.special_tokens import find_eos_token_ids
from arctic_training.generation.streaming import text_streamer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_MOST_MESSAGES = 2**20
"""More than any conversation has; draws of different numbers share no random numbers."""


class Chat:
    """The turns so far, and a model that answers the next one by the tokenizer's chat template."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None",
        keys: GenerationKeys,
        *,
        system: str = "",
    ) -> None:
        """Raises `InputError` for a tokenizer without a chat template."""
        if tokenizer is None or not tokenizer.chat_template:
            raise InputError("the tokenizer has no chat template; complete texts with: arctic_training generate")
        self.model, self.tokenizer, self.keys = model, tokenizer, keys
        self.messages: list[Message] = []
        self._draws: dict[int, int] = {}
        """How many answers were drawn before the one that was kept, by the number of messages before it."""
        self.system = system

    @property
    def system(self) -> str:
        """The system prompt; empty where there is none. Setting it begins a new conversation."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        self._system = text
        self.reset()

    def reset(self) -> None:
        """Begins a new conversation with the same system prompt."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def answer(self, text: str, write: Callable[[str], object]) -> str:
        """Returns the model's answer to ``text``, passed on to ``write`` as it is generated, and keeps both turns.

        A KeyboardInterrupt ends the answer where it is. Raises `InputError` for a conversation that the template
        refuses, or that is longer than the model's context; then the turn is not kept.
        """
        return self._answer([*self.messages, {"role": "user", "content": text}], 0, write)

    def retry(self, write: Callable[[str], object]) -> str:
        """Returns another answer to the last question, drawn with other random numbers, in place of the one that there
        is; see `answer`. Raises `InputError` where nothing was asked."""
        self._require_turn()
        return self._answer(self.messages[:-1], self._draws.get(len(self.messages) - 1, 0) + 1, write)

    def undo(self) -> str:
        """Removes the last question and its answer, and returns the question. Raises `InputError` where nothing was
        asked."""
        self._require_turn()
        question = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        return question

    def save(self, file: Path) -> None:
        """Appends the conversation to ``file`` as a row of JSON lines, ``{"messages": [...]}``, which `sft` reads.

        Raises `InputError` for a conversation without an answer, a file of another extension than ``.jsonl``, and one
        that cannot be written.
        """
        self._require_turn()
        path = file.expanduser()
        if path.suffix != ".jsonl":
            raise InputError(
                f"{file}: expected a name that ends with .jsonl; the conversation is one row of JSON lines"
            )
        try:
            row = json.dumps({"messages": self.messages}, ensure_ascii=False).encode() + b"\n"
            with open(path, "a+b") as stream:
                stream.seek(max(stream.seek(0, os.SEEK_END) - 1, 0))
                is_within_line = stream.read(1) not in (b"", b"\n")
                stream.write(b"\n" + row if is_within_line else row)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be written: {error}") from error

    def _answer(self, messages: list[Message], draw: int, write: Callable[[str], object]) -> str:
        """Answers ``messages``, of which the last is a question, with the random numbers of the ``draw``-th try."""
        ids = encode_prompt(self.tokenizer, messages, "chat")
        self._require_room(ids)
        written, keys = list[str](), self.keys

        def keep(part: str) -> None:
            written.append(part)
            write(part)

        streamer = None if keys.num_beams > 1 else text_streamer(self.tokenizer, keep, keys.stop)
        try:
            completions = generate(
                self.model,
                [ids],
                keys.sampling_params,
                tokenizer=self.tokenizer,
                eos_token_ids=end_token_ids(self.tokenizer, self.model),
                uniforms=seeded_uniforms([len(messages) + draw * _MOST_MESSAGES], keys.max_new_tokens, keys.seed),
                streamer=streamer,
            )
            answer = completions.texts(self.tokenizer)[0]
            if streamer is None:
                write(answer)
        except KeyboardInterrupt:
            answer = "".join(written)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        self._draws[len(messages)] = draw
        return answer

    def _require_turn(self) -> None:
        if len(self.messages) < 2:
            raise InputError("nothing was asked yet")

    def _require_room(self, ids: list[int]) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and len(ids) >= limit:
            raise InputError(
                f"the conversation has {len(ids)} tokens, and the model's context {limit}; begin anew with /reset"
            )


def end_token_ids(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> list[int]:
    """Returns the tokens that end a completion: those of tokenizer and model, and the one with which the chat template
    ends an answer."""
    turn: list[list[int]] = []
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        turn = [encode_prompt(tokenizer, chat, "chat", answered=True)]
    return find_eos_token_ids(tokenizer, model, turn)
