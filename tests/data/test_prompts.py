"""Prompts are what transformers renders for generation, with any template, and references are the model's answers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from arctic_training.data.factories.prompt import PromptDataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.preparation.prompt_encoder import PromptEncoder
from arctic_training.data.tokenization.encoder import SampleEncoder
from arctic_training.errors.types import DataError
from arctic_training.generation.prompts import Prompt
from tests.data import templates
from tests.data.styles import STYLES, Style, dialogues, in_letters
from tests.data.view import make

TOKENIZER = templates.byte_level(eos="</s>")
ENCLOSED_HEADER = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>user\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% else %}{% generation %}{{ '<|im_start|>assistant\\n' + m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def prompt_and_answer(template: str, chat: list[dict[str, Any]]) -> tuple[str, str]:
    TOKENIZER.chat_template = template
    ((prompt, answer),) = PromptEncoder(TOKENIZER).encode_pairs([Sample(messages=chat)], 0)
    return TOKENIZER.decode(prompt), TOKENIZER.decode(answer)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(style=STYLES, roles=dialogues())
def test_prompts_are_those_of_generation(style: Style, roles: list[str]) -> None:
    while roles[-1] in ("user", "tool"):
        roles = roles[:-1]
    assume(style.calls or not any("call" in role for role in roles))
    chat = in_letters(roles)
    prompt, answer = prompt_and_answer(style.template(), chat)
    assert prompt == TOKENIZER.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
    assert chat[-1]["content"] in answer
    assert answer.rstrip().endswith(style.end(last=True))


def test_a_header_within_what_is_enclosed_is_asked_and_not_answered() -> None:
    prompt, answer = prompt_and_answer(
        ENCLOSED_HEADER, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    )
    assert (prompt, answer) == ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>")


def test_rows_without_an_answer_are_refused_and_excluded_ones_left_out(tmp_path: Path, messages: list[str]) -> None:
    def prompts(*rows: dict[str, Any]) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        section = {"sources": [str(path)], "cache_dir": str(tmp_path / "cache"), "max_share_without_targets": 0.5}
        return make(PromptDataFactory, templates.byte_level(templates.CHATML), section)().train.dataset

    good = {"question": "q", "answer": "a"}
    assert len(prompts(good, {**good, "train": False})) == 1
    assert "1 of 2 rows have no target token: 2; they are dropped" in messages.pop()
    for bad in ({"question": "q", "answer": ""}, {"prompt": "q", "completion": " "}, {"messages": [turn("user", "q")]}):
        with pytest.raises(DataError, match=r"rows\.jsonl:1: there is no answer"):
            prompts(bad)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "template",
    [
        ENCLOSED_HEADER,
        Style().template(),
        Style(thought="each", prompt="<think>\n").template(),
        Style(ending="header", tag="parts").template(),
    ],
)
def test_an_evaluator_asks_the_same_of_samples_to_learn_from(template: str, tmp_path: Path) -> None:
    tokenizer = templates.byte_level(template)
    chat = in_letters(["user", "assistant", "user", "assistant"])
    later = [*chat, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    line_break = [*chat[:3], {"role": "assistant", "content": "\n\na"}]
    chats, path = [chat, later, line_break], tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in chats))
    section = {"sources": [str(path)], "cache_dir": str(tmp_path / "cache")}
    evaluators = [SimpleNamespace(type="generate")]
    samples = make(SFTDataFactory, tokenizer, section, evaluators=evaluators)().train.dataset
    for n in range(3):
        question = Prompt.from_sample(samples[n], "sample")
        expected = tokenizer.apply_chat_template(chats[n][:3], add_generation_prompt=True, tokenize=False)
        assert tokenizer.decode(question.prompt_ids) == expected
        assert n == 2 or not tokenizer.decode(question.reference_ids).startswith("<|im_start|>")
        assert chats[n][3]["content"].strip() in tokenizer.decode(question.reference_ids)
    assert "prompt_ids" not in make(SFTDataFactory, tokenizer, section)().train.dataset[0]


def test_an_evaluator_asks_texts_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "say yes: ", "completion": "yes"}\n')
    section = {"sources": [str(path)], "cache_dir": str(tmp_path / "cache")}
    tokenizer = templates.byte_level(templates.CHATML)
    maker = make(SFTDataFactory, tokenizer, section, evaluators=[SimpleNamespace(type="generate")])
    question = Prompt.from_sample(maker().train.dataset[0], "sample")
    assert tokenizer.decode(question.prompt_ids) == "say yes: "


def test_a_line_break_at_the_beginning_of_an_answer_leaves_the_prompt_as_it_is() -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\n\na"}]
    assert prompt_and_answer(templates.CHATML, chat)[0] == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_with_headers_and_no_generation_prompt_is_refused(tmp_path: Any) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(RowError, match=r"row 1: .* has no generation prompt .*add_generation_prompt"):
        prompt_and_answer(templates.CHATML_WITHOUT_PROMPT, chat)
    assert prompt_and_answer(templates.MISTRAL, chat)[0] == "<s>[INST] q [/INST]"  # whose answers have no header
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}')
    tokenizer = templates.byte_level(templates.CHATML_WITHOUT_PROMPT)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*no generation prompt"):
        make(PromptDataFactory, tokenizer, {"sources": [str(path)], "cache_dir": str(tmp_path / "cache")})()


def test_a_template_that_always_ends_with_an_answers_header_is_asked_so() -> None:
    """The header is the generation prompt; what answers begin with after it is theirs to say."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] + '<|assistant|>' }}{% else %}"
        "{{ '<|start_header_id|>' + m['content'] + '<|im_end|>' }}{% if loop.last %}{{ '<|assistant|>' }}{% endif %}"
        "{% endif %}{% endfor %}"
    )
    chat = in_letters(["user", "assistant", "user", "assistant"])
    prompt, answer = prompt_and_answer(template, chat)
    assert prompt == TOKENIZER.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
    assert answer == "<|start_header_id|>" + chat[3]["content"] + "<|im_end|>"
    ((ids, labels),) = SampleEncoder(TOKENIZER)([Sample(messages=chat)])
    answers = ["<|start_header_id|>" + chat[n]["content"] + "<|im_end|>" for n in (1, 3)]
    assert TOKENIZER.decode(ids[labels != -100]) == "".join(answers)
