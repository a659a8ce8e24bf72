"""How the next token is chosen: the parameters of a recipe, and sampling by random numbers from the caller."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arctic_training.distributed.heartbeat import record_heartbeat


@dataclass(frozen=True)
class SamplingParams:
    """How completions are generated: how long they may be, and how the next token is chosen."""

    max_new_tokens: int
    temperature: float = 1.0
    """What logits are divided by; 0: greedy decoding."""
    top_k: int = 0
    """Sample from the ``top_k`` most likely tokens; 0: from all."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability; 1: from all."""
    stop_strings: tuple[str, ...] = ()
    """Texts after which a completion ends; they are part of it."""

    def logits_processors(self) -> list[Any]:
        """Returns transformers' processors for these parameters, in the order of its own sampling."""
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        processors: list[Any] = [TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
        processors += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        return processors + ([TopPLogitsWarper(self.top_p)] if self.top_p < 1 else [])


class InverseTransformSampler:
    """A logits processor that samples: it leaves the token on which the completion's random number falls, so that
    greedy decoding takes it. No random generator is used, and completions do not depend on one another."""

    def __init__(self, uniforms: Tensor | None, prompt_length: int, log_probs: list[Tensor] | None = None) -> None:
        """``uniforms`` is ``[prompts, max_new_tokens]`` in [0, 1), or None to take the most likely token. The
        log-probabilities of the tokens, float32 ``[prompts]`` for each position, are appended to ``log_probs``."""
        self.uniforms, self.prompt_length, self.log_probs = uniforms, prompt_length, log_probs

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns ``scores``, ``[prompts, vocabulary]``, with 0 for the sampled token and -inf for all others."""
        record_heartbeat("generate")
        if self.uniforms is None:
            token = scores.argmax(-1, keepdim=True)
        else:
            # float64, because in float32 the probabilities of a large vocabulary add up to less than 1
            cumulated = scores.double().softmax(-1).cumsum(-1)
            mark = self.uniforms[:, input_ids.shape[1] - self.prompt_length, None] * cumulated[:, -1:]
            token = torch.searchsorted(cumulated, mark, right=True).clamp(max=scores.shape[1] - 1)
        if self.log_probs is not None:
            self.log_probs.append(scores.log_softmax(-1).gather(1, token)[:, 0])
        return torch.full_like(scores, float("-inf")).scatter_(1, token, 0.0)
