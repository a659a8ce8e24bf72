"""Penalties, min-p and beams are those of transformers, and what is generated beside a prompt does not matter."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.errors.types import InputError
from arctic_training.generation.config import GenerationKeys, read_options, with_option
from arctic_training.generation.generate import generate
from arctic_training.generation.sampling import SamplingParams, seeded_uniforms
from arctic_training.generation.streaming import text_streamer

PAD = 7
"""A token of the prompts, so that padding would count as an occurrence of it."""
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 9, 10], [14, 15]]
SETTINGS = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1, "repetition_penalty": 0.8},
    {"num_beams": 3},
    {"num_beams": 2, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():
        loaded.lm_head.weight.mul_(20)
    return loaded


def tokens(model: Any, prompts: list[list[int]], params: SamplingParams, **more: Any) -> list[list[int]]:
    tokenizer = SimpleNamespace(pad_token_id=PAD)
    return generate(model, prompts, params, tokenizer=tokenizer, eos_token_ids=[3], **more).token_ids


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_completions_are_those_of_transformers_for_each_prompt_alone(model: Any, settings: dict[str, Any]) -> None:
    together = tokens(model, PROMPTS, SamplingParams(12, temperature=0, **settings))
    for prompt, completion in zip(PROMPTS, together, strict=True):
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 3, "pad_token_id": 0}
        (alone,) = model.generate(ids, attention_mask=torch.ones_like(ids), **options, **settings).tolist()
        expected = alone[len(prompt) :]
        assert completion == expected[: expected.index(3) + 1 if 3 in expected else None]
    assert together != tokens(model, PROMPTS, SamplingParams(12, temperature=0))


def test_sampling_draws_from_what_the_settings_leave(model: Any) -> None:
    params = SamplingParams(1, temperature=1.3, min_p=0.2, repetition_penalty=1.4)
    uniforms = seeded_uniforms(range(300), 1, seed=0)
    drawn = {one[0] for one in tokens(model, [PROMPTS[2]] * 300, params, uniforms=uniforms)}
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[2]])).logits[0, -1]
    for token in set(PROMPTS[2]):
        logits[token] = logits[token] / 1.4 if logits[token] > 0 else logits[token] * 1.4
    probabilities = (logits / 1.3).softmax(-1)
    allowed = (probabilities >= 0.2 * probabilities.max()).nonzero()[:, 0].tolist()
    assert len(allowed) > 1 and drawn == set(allowed)


def test_the_same_seed_gives_the_same_completion_in_any_batch(model: Any) -> None:
    params = SamplingParams(8, temperature=1.2, repetition_penalty=1.3, no_repeat_ngram_size=2)
    together = tokens(model, PROMPTS, params, uniforms=seeded_uniforms([0] * 4, 8, seed=3), batch_size=3)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        assert tokens(model, [prompt], params, uniforms=seeded_uniforms([0], 8, seed=3)) == [completion]
    assert tokens(model, PROMPTS, params, uniforms=seeded_uniforms([0] * 4, 8, seed=4)) != together


def test_beam_search_refuses_what_it_has_not(model: Any) -> None:
    with pytest.raises(ValueError, match="set temperature: 0"):
        SamplingParams(4, num_beams=2)
    with pytest.raises(ValueError, match="beam search has no log_probs"):
        tokens(model, PROMPTS, SamplingParams(4, 0, num_beams=2), log_probs=True)


def test_settings_of_the_model_give_way(model: Any) -> None:
    plain = tokens(model, PROMPTS, SamplingParams(8, 0, repetition_penalty=1.3))
    model.generation_config.update(repetition_penalty=0.02)
    try:
        mine = tokens(model, PROMPTS, SamplingParams(8, 0, repetition_penalty=1.3), model_defaults=True)
        theirs = tokens(model, PROMPTS, SamplingParams(8, 0), model_defaults=True)
    finally:
        model.generation_config.update(repetition_penalty=None)
    assert mine == plain != theirs


def test_a_tokenizer_needs_neither_pad_nor_end_token(model: Any) -> None:
    tokenizer = SimpleNamespace(pad_token_id=None, eos_token_id=None)
    params = SamplingParams(8, 0)
    bare = generate(model, PROMPTS, params, tokenizer=tokenizer, eos_token_ids=[3]).token_ids  # type: ignore[arg-type]
    assert bare == tokens(model, PROMPTS, params)


def test_options_that_cannot_be_used_are_named() -> None:
    assert read_options({"top_k": 3, "checkpoint": "x"}) == GenerationKeys(top_k=3)
    with pytest.raises(InputError, match=r"^--top-p: .*less than or equal to 1"):
        read_options({"top_p": 1.5})
    with pytest.raises(InputError, match=r"^num_beams: beam search takes the most likely completion"):
        read_options({"num_beams": 2, "temperature": 0.5})


def test_an_option_is_changed_by_its_text() -> None:
    keys = GenerationKeys(temperature=0.7, stop=["a"])
    assert with_option(keys, "temperature", "0.3") == GenerationKeys(temperature=0.3, stop=["a"])
    assert with_option(keys, "max-new-tokens", "2k").max_new_tokens == 2000
    assert with_option(keys, "seed", "7").seed == 7
    assert with_option(keys, "stop", "so on").stop == ["so on"] and with_option(keys, "stop", "").stop == []
    for name, text, message in [
        ("top_p", "2", "^top-p: .*less than or equal to 1"),
        ("top_k", "many", "^top-k: "),
        ("temperature", "", "^temperature: "),
        ("num_beams", "4", "set temperature: 0"),
        ("type", "x", "no option is named type; there are: max_new_tokens"),
        ("temprature", "1", "did you mean 'temperature'"),
    ]:
        with pytest.raises(InputError, match=message):
            with_option(keys, name, text)


PARTS = st.lists(st.sampled_from(["a", "b", " ", "ab", "\n", "c "]), max_size=12)


@given(PARTS, st.sampled_from([(), ("ab",), ("c", "b \n")]))
def test_a_streamed_text_is_the_completion_without_its_stop_string(parts: list[str], stops: tuple[str, ...]) -> None:
    letters: list[str] = []
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(parts[n] for n in ids))
    streamer = text_streamer(tokenizer, letters.append, stops)
    streamer.put(torch.tensor([[0]]))
    for number in range(len(parts)):
        streamer.put(torch.tensor([number]))
    streamer.end()
    text = "".join(parts)
    ends = [text.find(stop) for stop in stops if stop in text]
    assert "".join(letters) == text[: min(ends, default=len(text))]
