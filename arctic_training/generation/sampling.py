"""Answers drawn from a model, by random numbers that are their own, whenever and beside whatever they are drawn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.generation.prompts import is_zero3, left_pad, without_router_logits


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    """Draw from so many of the likeliest; 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest that together have this probability."""

    def processors(self) -> list[Any]:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        made: list[Any] = [TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
        made += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        return made + ([TopPLogitsWarper(self.top_p)] if self.top_p < 1 else [])


@torch.no_grad()
def sample(
    engine: Any,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    sampling: Sampling,
    *,
    ends: Sequence[int],
    pad: int,
    told: list[Tensor] | None = None,
) -> list[list[int]]:
    """An answer to each prompt, with the end token that closes it, if one does.

    ``uniforms`` is ``[prompts, max_new_tokens]`` in (0, 1), a number for each token that may be drawn. The model is in
    the mode it is in. To ``told`` go the log-probabilities of what is drawn, ``[prompts]`` for each token. What the
    model's files say of generation, such as a penalty on repetitions, is no part of the policy.
    """
    rows, mask, start = left_pad(prompts, pad, engine.module)
    device = uniforms.device
    with _plain(engine.module, ends, pad):
        out = engine.module.generate(
            input_ids=rows.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            logits_processor=[*sampling.processors(), _Drawn(uniforms, start, told)],
            synced_gpus=is_zero3(engine),
            **without_router_logits(engine.module),
        )
    return [_ended(answer, frozenset(ends)) for answer in out[:, start:].tolist()]


class _Drawn:
    """Leaves of all tokens the one that its random number falls on, so that the likeliest is the one that is drawn."""

    def __init__(self, uniforms: Tensor, start: int, told: list[Tensor] | None = None) -> None:
        self.uniforms, self.start, self.told = uniforms, start, told

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        record_heartbeat("generate")
        # in doubles: single precision adds up to less than 1 over a large vocabulary
        cumulated = scores.double().softmax(-1).cumsum(-1)
        mark = self.uniforms[:, input_ids.shape[1] - self.start, None] * cumulated[:, -1:]
        chosen = torch.searchsorted(cumulated, mark, right=True).clamp(max=scores.shape[1] - 1)
        if self.told is not None:
            self.told.append(scores.log_softmax(-1).gather(1, chosen)[:, 0])
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)


def _ended(answer: list[int], ends: frozenset[int]) -> list[int]:
    return answer[: next((n for n, token in enumerate(answer, 1) if token in ends), len(answer))]


@contextmanager
def _plain(module: Any, ends: Sequence[int], pad: int) -> Iterator[None]:
    """A generation config that says nothing but how answers begin and end, in the place of the model's own."""
    from transformers import GenerationConfig

    holders = [part for part in module.modules() if "generation_config" in vars(part)]
    kept = [part.generation_config for part in holders]
    try:
        for part, config in zip(holders, kept, strict=True):
            start = getattr(config, "decoder_start_token_id", None)  # None but where there is an encoder
            part.generation_config = GenerationConfig(
                eos_token_id=list(ends), pad_token_id=pad, decoder_start_token_id=start
            )
        yield
    finally:
        for part, config in zip(holders, kept, strict=True):
            part.generation_config = config
