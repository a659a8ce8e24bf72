"""Completions are sampled from the model's distribution, by random numbers of their own, whatever is sampled beside."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arctic_training.data.batching.noise import uniform
from arctic_training.generation.generate import generate
from arctic_training.generation.sampling import InverseTransformSampler, SamplingParams

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [16, 17, 18], [19]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    # sharper than a model that knows nothing, so that likely tokens are likely
    with torch.no_grad():
        loaded.lm_head.weight.mul_(20)
    return loaded


def sample(
    model: Any, prompts: list[list[int]], rows: list[int], sampling: SamplingParams, ends: list[int]
) -> list[list[int]]:
    uniforms = uniform(torch.tensor(rows), sampling.max_new_tokens, seed=1)
    tokenizer = SimpleNamespace(pad_token_id=0)
    return generate(model, prompts, sampling, tokenizer=tokenizer, eos_token_ids=ends, uniforms=uniforms).token_ids


def test_a_completion_does_not_depend_on_its_batch(model: Any) -> None:
    how = SamplingParams(8)
    together = sample(model, PROMPTS, list(range(6)), how, [3])
    assert len({tuple(completion) for completion in together}) == 6
    for n, prompt in enumerate(PROMPTS):
        assert sample(model, [prompt], [n], how, [3]) == [together[n]]
    assert sample(model, PROMPTS[::-1], list(range(6))[::-1], how, [3]) == together[::-1]
    assert sample(model, PROMPTS, list(range(6, 12)), how, [3]) != together


@pytest.mark.parametrize(
    "sampling", [SamplingParams(1), SamplingParams(1, temperature=2.5), SamplingParams(1, top_k=3, top_p=0.9)]
)
def test_tokens_are_sampled_with_the_probabilities_of_the_model(model: Any, sampling: SamplingParams) -> None:
    count = 4000
    tokens = [one[0] for one in sample(model, [PROMPTS[0]] * count, list(range(count)), sampling, [3])]
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1].double() / sampling.temperature
    probabilities = logits.softmax(-1)
    if sampling.top_k:
        kept = probabilities.topk(sampling.top_k)
        several = kept.indices[: _until(kept.values, sampling.top_p)]
        masked = torch.zeros_like(probabilities)
        masked[several] = probabilities[several]
        probabilities = masked / masked.sum()
    frequencies = torch.bincount(torch.tensor(tokens), minlength=len(probabilities)).double() / count
    assert frequencies[probabilities == 0].sum() == 0
    for token in probabilities.topk(5).indices:
        spread = (probabilities[token] * (1 - probabilities[token]) / count).sqrt()
        assert abs(frequencies[token] - probabilities[token]) <= 4.5 * spread + 1e-12


def _until(values: torch.Tensor, share: float) -> int:
    """How many of the likeliest together have ``share`` of the probability of all that are left."""
    return int((values / values.sum()).cumsum(0).lt(share).sum()) + 1


def test_a_completion_stops_at_its_end_token_and_keeps_it(model: Any) -> None:
    every = sample(model, PROMPTS, list(range(6)), SamplingParams(8), [3])
    ends = [every[0][2], every[1][0]]
    for completion, long in zip(sample(model, PROMPTS, list(range(6)), SamplingParams(8), ends), every, strict=True):
        places = [n for n, token in enumerate(long, 1) if token in ends]
        assert completion == long[: min(places, default=8)]


def test_the_generation_config_of_the_model_is_not_used(model: Any) -> None:
    plain = sample(model, PROMPTS, list(range(6)), SamplingParams(8), [3])
    kept = model.generation_config
    model.generation_config.update(repetition_penalty=50.0, no_repeat_ngram_size=1, eos_token_id=plain[0][0])
    try:
        assert sample(model, PROMPTS, list(range(6)), SamplingParams(8), [3]) == plain
        assert model.generation_config is kept and kept.repetition_penalty == 50.0
    finally:
        model.generation_config.update(repetition_penalty=None, no_repeat_ngram_size=None, eos_token_id=3)


@pytest.mark.parametrize("mark", [1e-17, 0.5, 1 - 2**-53])
def test_no_token_of_probability_0_is_sampled(mark: float) -> None:
    scores = torch.full((1, 9), float("-inf"))
    scores[0, 2] = scores[0, 5] = 1.0
    out = InverseTransformSampler(torch.tensor([[mark]], dtype=torch.float64), 4)(
        torch.zeros(1, 4, dtype=torch.long), scores
    )
    assert int(out.argmax()) == (2 if mark < 0.5 else 5)
    assert out.isfinite().sum() == 1


def test_an_encoder_decoder_returns_the_completion_alone() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(vocab_size=40, decoder_start_token_id=1, **shape)).eval()  # type: ignore[arg-type]
    together = sample(model, PROMPTS, list(range(6)), SamplingParams(5), [3])
    for n, prompt in enumerate(PROMPTS):
        (alone,) = sample(model, [prompt], [n], SamplingParams(5), [3])
        assert alone == together[n] and 1 <= len(alone) <= 5


def test_greedy_decoding_takes_the_most_likely_tokens_and_touches_no_generator(model: Any) -> None:
    tokenizer, before = SimpleNamespace(pad_token_id=0), torch.get_rng_state()
    greedy = SamplingParams(4, temperature=0)
    (tokens,) = generate(model, [PROMPTS[0]], greedy, tokenizer=tokenizer, eos_token_ids=[3]).token_ids
    ids = list(PROMPTS[0])
    for token in tokens:
        with torch.no_grad():
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_random_numbers_torchs_default_generator_gives_them(model: Any) -> None:
    tokenizer = SimpleNamespace(pad_token_id=0)

    def draw(seed: int) -> list[list[int]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return generate(model, PROMPTS, SamplingParams(8), tokenizer=tokenizer, eos_token_ids=[3]).token_ids

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("sampling", [SamplingParams(8, 0), SamplingParams(8, temperature=1.5)])
def test_log_probs_and_logits_are_those_of_the_model_whatever_is_generated_beside(
    model: Any, sampling: SamplingParams
) -> None:
    """And batches of two give the same as all prompts at once."""
    uniforms = uniform(torch.arange(6), 8, seed=1)
    tokenizer = SimpleNamespace(pad_token_id=0)
    keys: dict[str, Any] = {"tokenizer": tokenizer, "eos_token_ids": [3], "uniforms": uniforms}
    completions = generate(model, PROMPTS, sampling, **keys, batch_size=2, log_probs=True, logits=True)
    assert completions.token_ids == generate(model, PROMPTS, sampling, **keys).token_ids
    assert completions.log_probs is not None and completions.logits is not None
    for n, (prompt, tokens) in enumerate(zip(PROMPTS, completions.token_ids, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert torch.allclose(completions.logits[n], logits, atol=1e-4)
        expected = (logits / (sampling.temperature or 1)).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert torch.allclose(completions.log_probs[n], expected, atol=1e-4)
        assert completions.finished[n] == (tokens[-1] == 3)


def test_a_text_ends_before_its_stop_string(model: Any, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    keys: dict[str, Any] = {"tokenizer": tokenizer, "eos_token_ids": [3], "uniforms": uniform(torch.arange(6), 8)}
    free = generate(model, PROMPTS, SamplingParams(8), **keys)
    unstopped = free.texts(tokenizer)
    assert free.finished == [tokens[-1] == 3 for tokens in free.token_ids]
    stop = next(letter for letter in unstopped[0][1:] if letter.isascii() and letter.isprintable())
    stopped = generate(model, PROMPTS, SamplingParams(8, stop_strings=(stop,)), **keys)
    assert stopped.texts(tokenizer) == [text.split(stop)[0] for text in unstopped]
    for n, text in enumerate(unstopped):
        assert stopped.finished[n] == (stop in text or free.finished[n])
        assert stopped.token_ids[n] == free.token_ids[n][: len(stopped.token_ids[n])]


def test_no_prompt_has_no_completion(model: Any) -> None:
    tokenizer = SimpleNamespace(pad_token_id=0)
    assert len(generate(model, [], SamplingParams(8), tokenizer=tokenizer, eos_token_ids=[3])) == 0
