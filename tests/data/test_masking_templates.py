"""Every labelled character is the assistant's: each speaker has letters of its own, in many templates and dialogues."""

import json
from itertools import groupby
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.remarks import collect, lines
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.tokenization import check_labels as checks
from arctic_training.data.tokenization.assistant_mask import AssistantMasker
from arctic_training.data.tokenization.chat_template import ChatTemplate
from arctic_training.data.tokenization.encoder import SampleEncoder
from tests.data import templates
from tests.data.styles import IM_END, STYLES, Style, dialogues, in_letters, speaker

TOKENIZER = templates.byte_level(eos="</s>")


def learned(style: Style | str, chat: list[dict[str, Any]], tools: Any = None, **options: Any) -> list[str]:
    """The stretches of targets, and that the row is what transformers renders."""
    TOKENIZER.chat_template = style if isinstance(style, str) else style.template()
    ((ids, labels),) = SampleEncoder(TOKENIZER, **options)([Sample(messages=chat, tools=tools)])
    runs = groupby(zip(ids.tolist(), labels.tolist(), strict=True), key=lambda pair: pair[1] != -100)
    assert TOKENIZER.decode(ids) == TOKENIZER.apply_chat_template(chat, tools=tools, tokenize=False)
    return [TOKENIZER.decode([token for token, _ in run]) for is_target, run in runs if is_target]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(style=STYLES, roles=dialogues())
def test_every_answer_is_learned_with_its_end_and_nothing_else_is(style: Style, roles: list[str]) -> None:
    chat = in_letters(roles)
    answers = [n for n, message in enumerate(chat) if message["role"] == "assistant"]
    calls = [f"name{n}" for n, role in enumerate(roles) if "call" in role]
    if calls and not style.calls:
        with pytest.raises(RowError, match=r"row 1: message [0-9]+: the tool call .* does not stand"):
            learned(style, chat)
        return
    actual = learned(style, chat)
    assert len(actual) == len(answers)
    for n, text in zip(answers, actual, strict=True):
        letters = {number for letter in text if (number := speaker(letter)) is not None}
        assert letters == ({n} if chat[n]["content"] else set())
        assert chat[n]["content"] in text
        assert "call" not in roles[n] or f'"name{n}"' in text
        assert not any(opening in text for opening in ("<|im_start|>", "<|user|>", "<|tool|>", "<|assistant|>"))
        assert text.rstrip().endswith(style.end(last=n == len(chat) - 1))
        assert text.count(IM_END) <= 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(style=STYLES, roles=dialogues())
def test_with_mask_history_the_last_answer_is_learned_with_its_end_and_nothing_else_is(
    style: Style, roles: list[str]
) -> None:
    chat = in_letters(roles)
    last = max(n for n, message in enumerate(chat) if message["role"] == "assistant")
    if "call" in roles[last] and not style.calls:
        with pytest.raises(RowError, match=rf"row 1: message {last + 1}: the tool call .* does not stand"):
            learned(style, chat, mask_history=True)
        return
    (text,) = learned(style, chat, mask_history=True)
    assert {number for letter in text if (number := speaker(letter)) is not None} == (
        {last} if chat[last]["content"] else set()
    )
    assert chat[last]["content"] in text
    assert "call" not in roles[last] or f'"name{last}"' in text
    assert text.rstrip().endswith(style.end(last=last == len(chat) - 1))
    assert text.count(IM_END) <= 1


def test_what_is_remarked_of_answers_concerns_those_that_are_to_be_learned() -> None:
    chat = in_letters(["user", "assistant", "user", "assistant"])
    tagged = Style(tag="turn").template()
    enclosed = {
        number: tagged.replace("m['role'] == 'assistant'", f"m['role'] == 'assistant' and loop.index == {number}")
        for number in (2, 4)
    }
    cases = [
        # template, which answers are no targets, whether a remark says so of those that are to be
        (enclosed[4], {}, "not enclose"),
        (enclosed[4], {"mask_history": True}, ""),
        (enclosed[4], {1}, ""),
        (enclosed[2], {"mask_history": True}, "not enclose"),
        (Style(ending="next").template(), {}, "no end token"),
        (Style(ending="next").template(), {"mask_history": True}, "no end token"),
        (Style(ending="next").template(), {3}, ""),
        (tagged.replace("{{ '<|im_end|>' }}", "{{ '<|im_end|>' if loop.last }}"), {"mask_history": True}, ""),
    ]
    for template, masks, remarked in cases:
        TOKENIZER.chat_template = template
        options = masks if isinstance(masks, dict) else {}
        sample = Sample(messages=chat, untrained_messages=frozenset(masks) if isinstance(masks, set) else frozenset())
        with collect() as remarks:
            SampleEncoder(TOKENIZER, **options)([sample])
        line = " ".join(lines(remarks, "x"))
        assert (remarked in line) if remarked else not line


def test_an_earlier_answer_that_a_template_leaves_out_is_refused_only_if_it_is_to_be_learned() -> None:
    chat = in_letters(["user", "call", "tool", "assistant"])
    assert learned(Style(calls=False), chat, mask_history=True) == [chat[3]["content"] + IM_END]
    with pytest.raises(RowError, match="message 2: the tool call 'name1' does not stand"):
        learned(Style(calls=False), chat)


@settings(max_examples=100, deadline=None)
@given(
    style=st.builds(Style, tag=st.just("turn"), trims=st.booleans(), ending=st.sampled_from(["each", "none"])),
    words=st.lists(st.sampled_from(["yes", "yes no", " no\n", "user", "", IM_END]), min_size=1, max_size=6),
)
def test_a_chat_in_order_has_nothing_that_a_search_finds(style: Style, words: list[str]) -> None:
    chat = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(words)]
    TOKENIZER.chat_template = style.template()
    template = ChatTemplate(TOKENIZER)
    (masked,) = AssistantMasker(template)([chat])
    in_order = checks._is_in_order(masked, template.end_tokens)
    assert in_order == (style.ending == "each" or len(words) == 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "_is_in_order", lambda *_: False)
        remarks = checks.check_labels(masked, range(len(masked.answers)), template.end_tokens)
    assert not (in_order and remarks)


@pytest.mark.parametrize("tag", ["", "turn", "parts", "words"])
def test_the_last_answer_of_a_preference_is_learned_with_its_end(tag: str) -> None:
    chat = in_letters(["user", "assistant", "user", "assistant"])
    TOKENIZER.chat_template = Style(tag=tag).template()
    ((ids, labels),) = SampleEncoder(TOKENIZER)([Sample(messages=chat)], last_turns=[1])
    assert TOKENIZER.decode(ids[labels != -100]) == chat[3]["content"] + IM_END


@pytest.mark.parametrize("tag", ["", "turn"])
def test_words_that_a_template_leaves_out_beside_a_call_are_refused(tag: str) -> None:
    template = Style(tag=tag).template().replace("{{ m['content'] }}", "{{ m['content'] if not m.tool_calls }}", 1)
    chat = in_letters(["user", "words and call", "tool", "assistant"])
    with pytest.raises(RowError, match=r"row 1: message 2: its words .* do not stand"):
        learned(template, chat)
    chat[1]["content"] = ""
    assert len(learned(template, chat)) == 2


def test_a_call_that_a_template_leaves_out_is_refused() -> None:
    chat = in_letters(["user", "call", "tool", "assistant"])
    with pytest.raises(RowError, match=r"row 1: message 2: the tool call 'name1' does not stand .*remove the row"):
        learned(Style(calls=False), chat)


def test_the_second_of_two_like_calls_that_a_template_leaves_out_is_refused() -> None:
    chat = in_letters(["user", "call", "tool", "assistant"])
    chat[1]["tool_calls"] *= 2
    learned(Style(), chat)
    with pytest.raises(RowError, match=r"message 2: the tool call 'name1' does not stand 2 times"):
        learned(Style().template().replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"), chat)


def test_a_question_within_what_is_enclosed_is_refused() -> None:
    everything = "{% generation %}" + Style().template().replace("{% if add", "{% endgeneration %}{% if add")
    with pytest.raises(RowError, match=r"row 1: message 1 \(user\) stands in what the assistant says"):
        learned(everything, in_letters(["user", "assistant"]))


def test_an_answer_that_holds_the_end_token_is_learned_to_its_end() -> None:
    chat = in_letters(["user", "assistant", "user", "assistant"])
    chat[1]["content"] = "it is </s> or <|im_end|>, so it is"
    for ending in ("each", "next", "last", "header", "chat", "none"):
        assert learned(Style(ending=ending), chat)[0].startswith(
            chat[1]["content"] + Style(ending=ending).end(last=False)
        )


@pytest.mark.parametrize("kind", ["joined", "parts only"])
def test_contents_of_text_parts_are_their_texts(kind: str) -> None:
    chat = in_letters(["user", "assistant", "user", "assistant"])
    template = Style().template()
    if kind == "parts only":
        written = "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
        template = template.replace("{{ m['content'] }}", written)
    in_parts = [
        {
            **message,
            "content": [{"type": "text", "text": text} for text in (message["content"][:2], message["content"][2:])],
        }
        for message in chat
    ]
    TOKENIZER.chat_template = template
    expected = [chat[n]["content"] + IM_END for n in (1, 3)]
    for rows in (chat, in_parts):
        ((ids, labels),) = SampleEncoder(TOKENIZER)([Sample(messages=rows)])
        assert TOKENIZER.decode(ids[labels != -100]) == "".join(expected)


@pytest.mark.parametrize("takes", ["mapping", "text"])
def test_arguments_are_rendered_as_a_mapping_is_in_whatever_form_they_come(takes: str) -> None:
    template = Style().template()
    if takes == "text":
        template = template.replace("call.function | tojson", "call.function.name + ' ' + call.function.arguments")
    arguments = {"word": 'é"x', "many": [1, 2.5, None]}
    texts = []
    for form in (arguments, json.dumps(arguments)):
        chat = in_letters(["user", "call", "tool", "assistant"])
        chat[1]["tool_calls"] = [{"type": "function", "function": {"name": "find", "arguments": form}}]
        TOKENIZER.chat_template = template
        ((ids, labels),) = SampleEncoder(TOKENIZER)([Sample(messages=chat)])
        texts.append(TOKENIZER.decode(ids[labels != -100]).partition("</tool_call>")[0])
    for text in texts:
        assert json.loads(text[text.index("{") :]) == (
            arguments if takes == "text" else {"name": "find", "arguments": arguments}
        )


@pytest.mark.parametrize("refused", ["{{ raise_exception('no') }}", templates.MERGING])
def test_a_refusal_names_an_argument_of_the_template_that_helps(refused: str) -> None:
    chat = in_letters(["user", "assistant", "user", "assistant"])
    template = (
        "{% if thoughts is defined and not thoughts %}" + templates.CHATML + "{% else %}" + refused + "{% endif %}"
    )
    with pytest.raises(RowError, match=r"it works with data\.chat_template_kwargs: \{thoughts: false\}$"):
        learned(template, chat)
    ((ids, labels),) = SampleEncoder(TOKENIZER, template_arguments={"thoughts": False})([Sample(messages=chat)])
    assert TOKENIZER.decode(ids[labels != -100]) == chat[1]["content"] + IM_END + chat[3]["content"] + IM_END
    with pytest.raises(RowError) as refusal:
        learned(refused, chat)
    assert "it works with" not in str(refusal.value)


def test_answers_without_an_end_token_are_remarked() -> None:
    chat = in_letters(["user", "assistant", "user", "assistant"])
    for ending, tag in [("each", ""), ("each", "turn"), ("none", ""), ("none", "turn"), ("next", "")]:
        TOKENIZER.chat_template = Style(ending=ending, tag=tag).template()
        with collect() as remarks:
            SampleEncoder(TOKENIZER)([Sample(messages=chat)])
        (line,) = lines(remarks, "chats.jsonl") or [""]
        assert ("no end token" in line) == (ending != "each")


@pytest.mark.parametrize("tag", ["", "turn"])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_messages_that_a_template_leaves_out_are_remarked(role: str, tag: str) -> None:
    chat = in_letters(["system", "user", "assistant"])
    chat[0]["role"] = role
    quotes = "{{ (m['content'] | tojson if m['role'] == '" + role + "' else m['content']) }}"
    plain = Style(tag=tag).template()
    cases = [
        (plain, False),
        (plain.replace("{{ m['content'] }}", quotes), False),
        (plain.replace("{% for m in messages %}", "{% for m in messages if m['role'] != '" + role + "' %}"), True),
    ]
    for template, remarked in cases:
        TOKENIZER.chat_template = template
        for words in (chat[0]["content"], 'be "kind"\nto all'):
            rows = [{**chat[0], "content": words}, *chat[1:]]
            with collect() as remarks:
                SampleEncoder(TOKENIZER)([Sample(messages=rows)])
            left_out = [line for line in lines(remarks, "x") if "leaves out" in line]
            remark = f"x has messages of the role {role} that the chat template leaves out"
            assert left_out == ([remark] if remarked else [])


def test_arguments_that_are_no_mapping_are_remarked() -> None:
    chat = in_letters(["user", "call", "tool", "assistant"])
    TOKENIZER.chat_template = Style().template()
    for arguments, remarked in (('{"a": 1}', False), ("{a: 1}", True), ("[1]", True)):
        chat[1]["tool_calls"][0]["function"]["arguments"] = arguments
        with collect() as remarks:
            SampleEncoder(TOKENIZER)([Sample(messages=chat)])
        assert any("no JSON of a mapping" in line for line in lines(remarks, "x")) == remarked


def test_thoughts_that_a_template_leaves_out_are_remarked() -> None:
    chat = in_letters(["user", "assistant", "user", "assistant"])
    chat[3]["content"] = "<think>\nwhy\n</think>\n\n" + chat[3]["content"]
    drops = Style().template().replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] | trim }}", 1)
    for template, leaves_out in ((Style().template(), False), (drops, True)):
        TOKENIZER.chat_template = template
        with collect() as remarks:
            ((ids, labels),) = SampleEncoder(TOKENIZER)([Sample(messages=chat)])
        assert ("why" in TOKENIZER.decode(ids[labels != -100])) != leaves_out
        assert any("thoughts that the chat template leaves out" in line for line in lines(remarks, "x")) == leaves_out


def test_an_answer_of_nothing_but_a_thought_that_a_template_leaves_out_is_refused() -> None:
    drops = Style().template().replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] | trim }}", 1)
    chat = in_letters(["user", "assistant"])
    chat[1]["content"] = "<think>\nwhy\n</think>\n"
    with pytest.raises(RowError, match=r"message 2: its words .*why.* do not stand"):
        learned(drops, chat)
    chat = in_letters(["user", "call", "tool", "assistant"])
    chat[1]["content"] = "<think>\nwhy\n</think>\n"
    assert "name1" in learned(drops, chat)[0]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_of_its_own_key_that_a_template_leaves_out_is_remarked(key: str) -> None:
    """A template may render the thoughts of the last answer alone; one that is all of an answer must be there."""
    thought, its = "{{ (m.THOUGHT or '') + m['content'] }}".replace("THOUGHT", key), f"m.{key} or ''"
    kept = Style().template().replace("{{ m['content'] }}", thought, 1)
    last = kept.replace(its, f"m.{key} if loop.last and m.{key} else ''", 1)
    for first, second in ((True, True), (True, False), (False, True)):
        chat = in_letters(["user", "assistant", "user", "assistant"])
        chat[1] |= {key: "why"} if first else {}
        chat[3] |= {key: "how"} if second else {}
        for template, remarked in ((kept, False), (last, first)):
            with collect() as remarks:
                answers = learned(template, chat)
            assert ["why" in answers[0], "how" in answers[1]] == [first and not remarked, second]
            assert any("thoughts that the chat template leaves out" in line for line in lines(remarks, "x")) == remarked
    chat = in_letters(["user", "assistant", "user", "assistant"])
    chat[1] |= {key: "why", "content": ""}
    assert "why" in learned(kept, chat)[0]
    with pytest.raises(RowError, match=r"row 1: message 2: its thought 'why', which is all that it says, does not"):
        learned(last, chat)


def test_answers_that_are_not_enclosed_are_remarked() -> None:
    template = (
        Style(tag="turn").template().replace("m['role'] == 'assistant'", "m['role'] == 'assistant' and loop.last")
    )
    TOKENIZER.chat_template = template
    with collect() as remarks:
        SampleEncoder(TOKENIZER)([Sample(messages=in_letters(["user", "assistant", "user", "assistant"]))])
    assert any("does not enclose" in line for line in lines(remarks, "chats.jsonl"))
