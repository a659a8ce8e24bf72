"""Answers are drawn from what the model says, by their own random numbers, whatever else is drawn beside them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_training.data.batching.noise import uniform
from arctic_training.generation.sampling import Sampling, _Drawn, sample

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [16, 17, 18], [19]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    # sharper than a model that knows nothing, so that likely tokens are likely
    with torch.no_grad():
        made.lm_head.weight.mul_(20)
    return made


def drawn(
    model: Any, prompts: list[list[int]], rows: list[int], sampling: Sampling, ends: list[int]
) -> list[list[int]]:
    uniforms = uniform(torch.tensor(rows), sampling.max_new_tokens, seed=1)
    return sample(SimpleNamespace(module=model), prompts, uniforms, sampling, ends=ends, pad=0)


def test_an_answer_is_its_own_whatever_is_drawn_beside_it(model: Any) -> None:
    how = Sampling(8)
    together = drawn(model, PROMPTS, list(range(6)), how, [3])
    assert len({tuple(answer) for answer in together}) == 6
    for n, prompt in enumerate(PROMPTS):
        assert drawn(model, [prompt], [n], how, [3]) == [together[n]]
    assert drawn(model, PROMPTS[::-1], list(range(6))[::-1], how, [3]) == together[::-1]
    assert drawn(model, PROMPTS, list(range(6, 12)), how, [3]) != together


@pytest.mark.parametrize("sampling", [Sampling(1), Sampling(1, temperature=2.5), Sampling(1, top_k=3, top_p=0.9)])
def test_tokens_come_as_often_as_the_model_says(model: Any, sampling: Sampling) -> None:
    count = 4000
    given = [one[0] for one in drawn(model, [PROMPTS[0]] * count, list(range(count)), sampling, [3])]
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1].double() / sampling.temperature
    probabilities = logits.softmax(-1)
    if sampling.top_k:
        kept = probabilities.topk(sampling.top_k)
        several = kept.indices[: _until(kept.values, sampling.top_p)]
        masked = torch.zeros_like(probabilities)
        masked[several] = probabilities[several]
        probabilities = masked / masked.sum()
    found = torch.bincount(torch.tensor(given), minlength=len(probabilities)).double() / count
    assert found[probabilities == 0].sum() == 0
    for token in probabilities.topk(5).indices:
        spread = (probabilities[token] * (1 - probabilities[token]) / count).sqrt()
        assert abs(found[token] - probabilities[token]) <= 4.5 * spread + 1e-12


def _until(values: torch.Tensor, share: float) -> int:
    """How many of the likeliest together have ``share`` of the probability of all that are left."""
    return int((values / values.sum()).cumsum(0).lt(share).sum()) + 1


def test_an_answer_stops_at_its_end_and_keeps_it(model: Any) -> None:
    every = drawn(model, PROMPTS, list(range(6)), Sampling(8), [3])
    ends = [every[0][2], every[1][0]]
    for answer, long in zip(drawn(model, PROMPTS, list(range(6)), Sampling(8), ends), every, strict=True):
        places = [n for n, token in enumerate(long, 1) if token in ends]
        assert answer == long[: min(places, default=8)]


def test_the_models_own_habits_are_no_part_of_the_policy(model: Any) -> None:
    plain = drawn(model, PROMPTS, list(range(6)), Sampling(8), [3])
    kept = model.generation_config
    model.generation_config.update(repetition_penalty=50.0, no_repeat_ngram_size=1, eos_token_id=plain[0][0])
    try:
        assert drawn(model, PROMPTS, list(range(6)), Sampling(8), [3]) == plain
        assert model.generation_config is kept and kept.repetition_penalty == 50.0
    finally:
        model.generation_config.update(repetition_penalty=None, no_repeat_ngram_size=None, eos_token_id=3)


@pytest.mark.parametrize("mark", [1e-17, 0.5, 1 - 2**-53])
def test_nothing_impossible_is_drawn(mark: float) -> None:
    scores = torch.full((1, 9), float("-inf"))
    scores[0, 2] = scores[0, 5] = 1.0
    out = _Drawn(torch.tensor([[mark]], dtype=torch.float64), 4)(torch.zeros(1, 4, dtype=torch.long), scores)
    assert int(out.argmax()) == (2 if mark < 0.5 else 5)
    assert out.isfinite().sum() == 1


def test_a_model_with_an_encoder_draws_its_answer_alone() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(vocab_size=40, decoder_start_token_id=1, **shape)).eval()  # type: ignore[arg-type]
    together = drawn(model, PROMPTS, list(range(6)), Sampling(5), [3])
    for n, prompt in enumerate(PROMPTS):
        (alone,) = drawn(model, [prompt], [n], Sampling(5), [3])
        assert alone == together[n] and 1 <= len(alone) <= 5
