"""The completions that a model generated: token ids, texts, log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from arctic_training.generation.special_tokens import decode_completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Completions:
    """The completions of a list of prompts, one each, in the order of the prompts."""

    token_ids: list[list[int]]
    """The tokens of each completion, with the token that ends it if there is one."""
    finished: list[bool]
    """Whether each completion has ended, by an end token or a stop string; else it was cut at ``max_new_tokens``."""
    eos_token_ids: list[int]
    """The tokens that end a completion."""
    stop_strings: tuple[str, ...] = ()
    """The texts that end a completion."""
    log_probs: list[Tensor] | None = None
    """If requested, the log-probability of each token under the distribution from which it was taken, in nats: float32
    ``[tokens]`` for each completion."""
    logits: list[Tensor] | None = None
    """If requested, the model's own logits at each token: float32 ``[tokens, vocabulary]`` for each completion."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def texts(self, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
        """Returns the text of each completion, without special tokens, and up to its stop string."""
        return [
            text_before(decode_completion(tokenizer, one, self.eos_token_ids), self.stop_strings)
            for one in self.token_ids
        ]


def text_before(text: str, stop_strings: Sequence[str]) -> str:
    """Returns ``text`` up to the first of ``stop_strings`` in it."""
    ends = [text.find(stop) for stop in stop_strings if stop in text]
    return text[: min(ends)] if ends else text
