"""A conversation with a model, turn by turn."""

from collections.abc import Callable
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
        messages = [*self.messages, {"role": "user", "content": text}]
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
                uniforms=seeded_uniforms([len(messages)], keys.max_new_tokens, keys.seed),
                streamer=streamer,
            )
            answer = completions.texts(self.tokenizer)[0]
            if streamer is None:
                write(answer)
        except KeyboardInterrupt:
            answer = "".join(written)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

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
