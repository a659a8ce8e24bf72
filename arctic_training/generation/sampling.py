"""Choice of the next token: the parameters of a recipe, and sampling by random numbers from the caller."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arctic_training.distributed.heartbeat import record_heartbeat


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of generation: how long completions may be, and how the next token is chosen."""

    max_new_tokens: int
    temperature: float = 1.0
    """What logits are divided by; 0: greedy decoding."""
    top_k: int = 0
    """Sample from the ``top_k`` most likely tokens; 0: from all."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability; 1: from all."""
    stop_strings: tuple[str, ...] = ()
    """Texts after which a completion ends; they are part of it."""
    min_p: float = 0.0
    """Sample from tokens at least ``min_p`` times as likely as the most likely one: Nguyen et al. 2024
    (arXiv 2407.01082); 0: from all."""
    repetition_penalty: float = 1.0
    """What the scores of tokens of the prompt and the completion are divided by, or multiplied with where they are
    negative: Keskar et al. 2019 (arXiv 1909.05858), section 4.1; 1: nothing."""
    no_repeat_ngram_size: int = 0
    """No sequence of so many tokens occurs twice in prompt and completion; 0: any may."""
    num_beams: int = 1
    """Completions that beam search follows at once, with a temperature of 0 alone; 1: no beam search."""

    def __post_init__(self) -> None:
        """Raises ValueError for beam search that would sample."""
        if self.num_beams > 1 and self.temperature:
            raise ValueError("num_beams: beam search takes the most likely completion; set temperature: 0")

    def logits_processors(self, padding: Sequence[int] = ()) -> list[Any]:
        """Returns transformers' processors for these parameters, in the order of its own sampling.

        ``padding`` is the number of tokens before each prompt that only fill the batch.
        """
        import transformers

        of_context: list[_Processor] = []
        if self.repetition_penalty != 1:
            of_context.append(transformers.RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.no_repeat_ngram_size:
            of_context.append(transformers.NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size))
        processors: list[Any] = [_WithoutPadding(one, padding) if any(padding) else one for one in of_context]
        if not self.temperature:
            return processors
        processors += [transformers.TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
        processors += [transformers.TopKLogitsWarper(self.top_k)] if self.top_k else []
        processors += [transformers.TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
        return processors + ([transformers.MinPLogitsWarper(self.min_p)] if self.min_p else [])


_Processor = Callable[[Tensor, Tensor], Tensor]


class _WithoutPadding:
    """A logits processor that sees each row without its padding: else a completion would depend on its batch."""

    def __init__(self, processor: _Processor, padding: Sequence[int]) -> None:
        self.processor, self.padding = processor, padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        beams = len(input_ids) // len(self.padding)
        rows = [
            self.processor(input_ids[n : n + 1, self.padding[n // beams] :], scores[n : n + 1])
            for n in range(len(input_ids))
        ]
        return torch.cat(rows)


def seeded_uniforms(rows: Sequence[int], length: int, seed: int) -> Tensor:
    """Returns random numbers in [0, 1), float64 ``[rows, length]``: those of a row depend on its number and ``seed``
    alone, so that they are the same in any batch and on any rank."""
    generators = [torch.Generator().manual_seed(seed + 1_000_003 * row) for row in rows]
    return torch.stack([torch.rand(length, generator=one, dtype=torch.float64) for one in generators])


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
