"""Labels are exactly what the assistant says, on a table of templates and dialogues, and on any dialogue."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.errors.types import DataError
from tests.data import templates
from tests.data.styles import Style

Chat = list[dict[str, Any]]
Words = Callable[[str], str]

TEMPLATES: dict[str, tuple[str, str, Words]] = {
    # name: template, end-of-text token, what is a target of an answer
    "chatml": (templates.CHATML, "<|im_end|>", lambda answer: answer + "<|im_end|>"),
    "chatml, other end of text": (templates.CHATML, "</s>", lambda answer: answer + "<|im_end|>"),
    "chatml without prompt": (templates.CHATML_WITHOUT_PROMPT, "<|im_end|>", lambda answer: answer + "<|im_end|>"),
    "chatml, default system": (templates.CHATML_DEFAULT_SYSTEM, "<|im_end|>", lambda answer: answer + "<|im_end|>"),
    "tagged": (templates.TAGGED, "<|im_end|>", lambda answer: answer + "<|im_end|>"),
    "tagged without end": (templates.TAGGED_WITHOUT_END, "<|im_end|>", lambda answer: answer + "<|im_end|>"),
    "llama3": (templates.LLAMA3, "<|eot_id|>", lambda answer: answer.strip() + "<|eot_id|>"),
    "mistral": (templates.MISTRAL, "</s>", lambda answer: " " + answer + "</s>"),
    "gemma": (templates.GEMMA, "<end_of_turn>", lambda answer: answer.strip() + "<end_of_turn>"),
    "plain": (templates.PLAIN, "</s>", lambda answer: answer + "\n\n"),
}
TOKENIZERS = {name: templates.byte_level(text, eos=eos) for name, (text, eos, _) in TEMPLATES.items()}
METASPACE = {name: templates.metaspace(text, eos=eos) for name, (text, eos, _) in TEMPLATES.items()}


def targets(tokenizer: Any, chat: Chat, **options: Any) -> list[str]:
    """The stretches of text whose tokens are targets."""
    ((ids, labels),) = SampleEncoder(tokenizer, **options)([Sample(messages=chat)])
    assert np.all((labels == ids) | (labels == -100))
    runs = groupby(zip(ids.tolist(), labels.tolist(), strict=True), key=lambda pair: pair[1] != -100)
    return [tokenizer.decode([token for token, _ in run]) for is_target, run in runs if is_target]


def chat_of(*words: str, system: str | None = None) -> Chat:
    """User and assistant in turn."""
    chat = [{"role": "system", "content": system}] if system is not None else []
    return chat + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(words)]


DIALOGUES = {
    "one turn": ("hi", "hello"),
    "one word, repeated": ("yes", "yes", "yes", "yes", "yes", "yes"),
    "the answer is in the question": ("say: the assistant said no", "no"),
    "the answer is a header": ("hi", "assistant", "user", "user"),
    "lines and spaces": ("a\n\nb", "c\n\n\nd  e\n", "f", " g "),
    "other scripts": ("你好", "世界🙂", "é", "naïve"),
    "special tokens in words": ("what ends a turn?", "<|im_end|> does, assistant", "and?", "</s>"),
}


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_table(name: str, dialogue: str) -> None:
    words, target = DIALOGUES[dialogue], TEMPLATES[name][2]
    expected = [target(answer) for answer in words[1::2]]
    assert targets(TOKENIZERS[name], chat_of(*words)) == expected
    assert targets(TOKENIZERS[name], chat_of(*words, "unanswered")) == expected


PIECES = [*"abe \n", "yes", "assistant", "<|im_end|>", "é", "🙂", "[INST]", ": "]
TEXT = st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: "".join(pieces).lstrip("\n"))


@pytest.mark.fault(33)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    words=st.lists(TEXT, min_size=2, max_size=7),
    system=st.one_of(st.none(), TEXT),
)
def test_any_dialogue(name: str, words: list[str], system: str | None) -> None:
    if name == "mistral":
        system = None
    if name == "plain":  # an empty answer's line break and its header's would be one token
        words = ["x" + text for text in words]
    expected = [target for answer in words[1::2] if (target := TEMPLATES[name][2](answer))]
    assert targets(TOKENIZERS[name], chat_of(*words, system=system)) == expected


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(TEMPLATES)), words=st.lists(TEXT, min_size=2, max_size=5))
def test_both_ways_to_find_tokens_agree(name: str, words: list[str]) -> None:
    chat = [Sample(messages=chat_of(*words))]
    by_bytes, by_offsets = SampleEncoder(TOKENIZERS[name]), SampleEncoder(TOKENIZERS[name])
    assert by_bytes._tokenize._bytes is not None
    by_offsets._tokenize._bytes = None
    for one, other in zip(by_bytes(chat)[0], by_offsets(chat)[0], strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
def test_a_tokenizer_that_marks_spaces(name: str) -> None:
    words = ("hello to you", "yes", "yes and no", "the user said yes é")
    learned = [text.strip() for text in targets(METASPACE[name], chat_of(*words))]
    assert learned == [TEMPLATES[name][2](answer).strip() for answer in words[1::2]]


def test_a_tokenizer_that_knows_no_offsets() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = templates.PLAIN
    assert not tokenizer.is_fast
    assert targets(tokenizer, chat_of("hi", "yes", "yes", "yes")) == ["yes\n\n", "yes\n\n"]


def test_a_token_that_holds_the_first_character_of_an_answer_is_a_target() -> None:
    """The line break after a header may be one token with those that an answer begins with."""
    assert targets(TOKENIZERS["chatml"], chat_of("a", "\n\nb")) == ["\n\n\nb<|im_end|>"]


THOUGHTS = {
    "none": (("a", "b"), ["<think>\n\n</think>\n\nb<|im_end|>"]),
    "earlier thoughts are dropped": (
        ("a", "<think>\nhm\n</think>\n\nb", "c", "<think>\nso\n</think>\n\nd"),
        ["b<|im_end|>", "<think>\nso\n</think>\n\nd<|im_end|>"],
    ),
    "the same answer": (("a", "a", "a", "a"), ["a<|im_end|>", "<think>\n\n</think>\n\na<|im_end|>"]),
    "unanswered": (("a", "<think>\nx\n</think>\n\nb", "c"), ["b<|im_end|>"]),
}


@pytest.mark.parametrize("which", THOUGHTS)
def test_a_template_that_drops_earlier_thoughts(which: str) -> None:
    words, expected = THOUGHTS[which]
    assert targets(templates.byte_level(templates.THINKING), chat_of(*words)) == expected


def test_an_empty_thought_can_be_left_out() -> None:
    tokenizer = templates.byte_level(templates.THINKING)
    assert targets(tokenizer, chat_of("a", "b", "c", "d"), ignore_empty_think=True) == ["b<|im_end|>", "d<|im_end|>"]
    kept = targets(tokenizer, chat_of("a", "<think>\nx\n</think>\n\nb"), ignore_empty_think=True)
    assert kept == ["<think>\nx\n</think>\n\nb<|im_end|>"]


@pytest.mark.parametrize("prompt", ["", "<think>", "<think>\n"])
def test_an_empty_thought_that_the_generation_prompt_opens_can_be_left_out(prompt: str) -> None:
    tokenizer = templates.byte_level(Style(thought="last", prompt=prompt).template())
    assert targets(tokenizer, chat_of("a", "b"), ignore_empty_think=True) == ["b<|im_end|>"]
    kept = targets(tokenizer, chat_of("a", "b"))
    assert kept == ["<think>\n\n</think>\n\nb<|im_end|>".removeprefix(prompt)]


def test_a_template_that_ends_the_chat_and_not_the_answer() -> None:
    tokenizer = templates.byte_level(templates.PHI3, eos="</s>")
    assert targets(tokenizer, chat_of("a", "b", "c", "d")) == ["b<|end|>", "d<|end|>\n</s>"]


def test_tool_calls_are_said_and_their_results_are_not() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    chat = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "2"},
    ]
    answer = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>'
    assert targets(templates.byte_level(templates.CALLS), chat) == [answer, "2<|im_end|>"]


def test_what_cannot_be_told_is_refused_by_row() -> None:
    encoder = SampleEncoder(templates.byte_level(templates.MERGING))
    rows = [Sample(messages=chat_of("a", "b")), Sample(messages=chat_of("a", "b", "c", "d"))]
    with pytest.raises(RowError, match=r"row 8: message 2: where .* cannot be found.*generation"):
        encoder(rows, 6)


def test_what_the_template_refuses_is_named_by_row() -> None:
    template = "{{ raise_exception('no system here') if messages[0]['role'] == 'system' }}" + templates.CHATML
    encoder = SampleEncoder(templates.byte_level(template))
    rows = [Sample(messages=chat_of("a", "b")), Sample(messages=chat_of("a", "b", system="x"))]
    with pytest.raises(RowError, match="row 2: the chat template refuses it: no system here"):
        encoder(rows)


@pytest.mark.parametrize("name", ["chatml", "tagged", "llama3"])
def test_messages_that_are_context_are_no_targets(name: str) -> None:
    encoder = SampleEncoder(TOKENIZERS[name])
    chat = chat_of("a", "one", "b", "two", "c", "three", system="s")
    text = "".join(TEMPLATES[name][2](answer) for answer in ("one", "two", "three"))
    for context, left in [({2}, "twothree"), ({4}, "onethree"), ({2, 4, 6}, ""), ({1}, "onetwothree")]:
        ((ids, labels), _) = encoder(
            [Sample(messages=chat, untrained_messages=frozenset(context)), Sample(messages=chat)]
        )
        answer = TOKENIZERS[name].decode(ids[labels != -100])
        assert answer.replace(TEMPLATES[name][2](""), "") == left
    ((ids, labels),) = encoder([Sample(messages=chat)])
    assert TOKENIZERS[name].decode(ids[labels != -100]) == text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    words=st.lists(TEXT, min_size=2, max_size=7),
    context=st.frozensets(st.sampled_from([1, 3])),
)
def test_with_mask_history_only_the_last_answer_is_a_target(
    name: str, words: list[str], context: frozenset[int]
) -> None:
    """The oracle is the place of the answer in the text that transformers renders."""
    if name == "plain":
        words = ["x" + text for text in words]
    tokenizer, chat = TOKENIZERS[name], chat_of(*words)
    last = max(range(1, len(words), 2))
    sample = Sample(messages=chat, untrained_messages=context & set(range(last)))
    ((ids, labels),) = SampleEncoder(tokenizer, mask_history=True)([sample])
    expected = TEMPLATES[name][2](words[last])
    start = tokenizer.apply_chat_template(chat[: last + 1], tokenize=False).rfind(expected)
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    places = np.flatnonzero(labels != -100)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids[: places[0]]) == text[:start]
    assert tokenizer.decode(ids[places[0] : places[-1] + 1]) == expected
    assert len(places) == places[-1] + 1 - places[0]
    ((_, labels),) = SampleEncoder(tokenizer, mask_history=True)(
        [Sample(messages=chat, untrained_messages=frozenset({last}))]
    )
    assert np.all(labels == -100)  # an answer before it does not take its place


def test_mask_history_leaves_pairs_of_text_as_they_are() -> None:
    samples = [Sample(prompt="say yes: ", completion="yes"), Sample(prompt="a", completion=" ")]
    every = [SampleEncoder(TOKENIZERS["chatml"], mask_history=masks)(samples) for masks in (False, True)]
    for one, other in zip(*every, strict=True):
        assert all(map(np.array_equal, one, other))


def test_context_that_cannot_be_told_is_refused_by_row() -> None:
    sample = Sample(messages=chat_of("a", "b", "c", "d"), untrained_messages=frozenset({1}))
    with pytest.raises(RowError, match="row 1: message 2 has the weight 0, and mask_inputs: false makes every token"):
        SampleEncoder(TOKENIZERS["chatml"], mask_inputs=False)([sample])


def test_a_template_that_encloses_the_last_answer_only_leaves_the_others_out() -> None:
    once = templates.TAGGED.replace("m['role'] == 'assistant'", "m['role'] == 'assistant' and loop.last")
    chat = chat_of("a", "b", "c", "d")
    for context in (frozenset[int](), frozenset({1})):
        ((ids, labels),) = SampleEncoder(templates.byte_level(once))(
            [Sample(messages=chat, untrained_messages=context)]
        )
        assert TOKENIZERS["tagged"].decode(ids[labels != -100]) == "d<|im_end|>"


def test_without_masking_everything_but_the_first_token_is_a_target() -> None:
    ((ids, labels),) = SampleEncoder(TOKENIZERS["chatml"], mask_inputs=False)([Sample(messages=chat_of("a", "b"))])
    assert labels[0] == -100
    assert np.array_equal(ids[1:], labels[1:])


def test_plain_pairs_end_with_the_end_token() -> None:
    tokenizer = TOKENIZERS["chatml"]
    ((ids, labels),) = SampleEncoder(tokenizer)([Sample(prompt="say yes: ", completion="yes")])
    assert tokenizer.decode(ids) == "say yes: yes<|im_end|>"
    assert tokenizer.decode(ids[labels != -100]) == "yes<|im_end|>"


def test_a_tokenizer_that_does_not_keep_text_is_refused() -> None:
    from tokenizers import decoders

    tokenizer = templates.byte_level(templates.CHATML)
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("yes", "no")])
    with pytest.raises(DataError, match=r"what the assistant says, 'yes.*decode to 'no.*cannot be found"):
        SampleEncoder(tokenizer)([Sample(messages=chat_of("a", "yes"))])
