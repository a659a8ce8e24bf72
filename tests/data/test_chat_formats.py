"""Formats of instruction data."""

import json
from typing import Any

import pytest

from arctic_training.data.formats.chat import Sample, reader
from arctic_training.data.formats.remarks import collect
from arctic_training.errors.types import DataError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def read(row: dict[str, Any]) -> Sample:
    return reader(list(row))(row)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
        {"conversation": CHAT, "other": 1},
        {"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]'},
        {"instruction": "hi", "input": "", "output": "yes"},
        {"instruction": "hi", "output": "yes"},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"prompt": "hi", "completion": CHAT[1:]},
        {"prompt": json.dumps(CHAT[:1]), "completion": "yes"},
        {"question": "hi", "answer": json.dumps(CHAT[1:])},
        {"prompt": CHAT[:1], "completion": "yes"},
        {"problem": "hi", "answer": "yes", "seed": 7},
        {"problem": "hi", "solution": "yes"},
        {"question": "hi", "answer": "yes"},
        {"query": "hi", "response": "yes"},
        {"prompt": "hi", "response": "yes"},
        {"input": "hi", "output": "yes"},
        {"instruction": "hi", "response": "yes", "context": ""},
        {"messages": [{"role": "User", "content": "hi"}, {"role": "AI", "content": "yes"}]},
        {"conversations": [{"from": "Human", "value": "hi"}, {"from": " GPT", "value": "yes"}]},
        {"messages": [{"role": "user", "text": "hi"}, {"from": "ASSISTANT", "content": "yes"}]},
        {"conversation": [{"input": "hi", "output": "yes"}]},
        {"prompt": "hi", "completion": "yes", "label": True, "system": None},
        {"messages": CHAT, "weight": 1, "train": True, "kto_tag": "true"},
    ],
)
def test_chats(row: dict[str, Any]) -> None:
    assert read(row) == Sample(messages=CHAT)


def test_other_parts_of_a_row() -> None:
    assert read({"instruction": "add", "input": "1 2", "output": "3"}).messages[0]["content"] == "add\n\n1 2"
    assert read({"prompt": "hi", "completion": "yes"}) == Sample(prompt="hi", completion="yes")
    assert read({"messages": CHAT, "tools": "[]"}).tools is None
    assert read({"messages": CHAT, "tools": '[{"name": "f"}]'}).tools == [{"name": "f"}]
    assert read({"conversations": CHAT, "system": "be kind"}).messages[0] == {"role": "system", "content": "be kind"}
    chat = read({"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None}]})
    assert chat.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_a_message_of_weight_0_is_context() -> None:
    silent = {**CHAT[1], "weight": 0}
    turns = [{**CHAT[0], "weight": 0}, silent, CHAT[0], {**CHAT[1], "weight": 1}]
    assert read({"messages": turns}) == Sample(messages=CHAT * 2, untrained_messages=frozenset({1}))
    assert read({"messages": turns, "system": "be kind"}).untrained_messages == {2}
    assert read({"prompt": [CHAT[0], silent, CHAT[0]], "completion": "yes"}).untrained_messages == {1}


FLAGS = [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"loss_scale": 0.0}, {"masked": True}]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_message_that_is_not_to_be_trained_on_is_context(flag: dict[str, Any]) -> None:
    opposite = {key: 1 - value for key, value in flag.items()}
    sample = read({"messages": [CHAT[0], {**CHAT[1], **flag}, CHAT[0], {**CHAT[1], **opposite}]})
    assert sample == Sample(messages=CHAT * 2, untrained_messages=frozenset({1}))
    assert next(iter(flag)) in sample.exclusion
    assert read({"messages": [{**CHAT[0], **flag}, CHAT[1]]}) == Sample(messages=CHAT)


ROW_FLAGS: list[dict[str, Any]] = [{"weight": 0}, {"weight": "0"}, {"weight": "0.0"}, {"train": False}]
ROW_FLAGS += [{"training": 0}, {"train": "False"}, {"loss": False}]


@pytest.mark.parametrize("flag", ROW_FLAGS)
def test_a_row_that_is_not_to_be_trained_on_is_empty(flag: dict[str, Any]) -> None:
    for row in ({"messages": CHAT}, {"prompt": "hi", "completion": "yes"}, {"question": "hi", "answer": "yes"}):
        assert read({**row, **flag}) == Sample()
        assert read({**row, **dict.fromkeys(flag)}) == read(row)


def test_of_a_prompt_with_answers_only_the_completion_is_learned() -> None:
    for answer in ("yes", CHAT[1:]):
        sample = read({"prompt": [*CHAT, CHAT[0]], "completion": answer})
        assert sample == Sample(messages=CHAT * 2, untrained_messages=frozenset({1}), prompt_messages=frozenset({1}))
    sample = read({"system": "be kind", "question": [*CHAT, CHAT[0]], "response": CHAT[1:]})
    assert sample.messages[0]["role"] == "system" and sample.untrained_messages == {2}


def test_a_pair_with_a_system_prompt_or_tools_is_a_chat() -> None:
    assert read({"prompt": "hi", "completion": "yes", "system": "be kind"}) == Sample(
        messages=[{"role": "system", "content": "be kind"}, *CHAT]
    )
    assert read({"prompt": "hi", "completion": "yes", "tools": [{"name": "f"}]}).tools == [{"name": "f"}]
    row = {"system_prompt": "be kind", "question": "hi", "response": "yes"}
    assert read(row).messages == [{"role": "system", "content": "be kind"}, *CHAT]


def test_one_of_two_system_prompts_is_remarked() -> None:
    turns = [{"role": "system", "content": "be kind"}, *CHAT]
    for column, remarks in (("be kind", 0), ("be brief", 1), ("", 0)):
        with collect() as collected:
            assert read({"messages": turns, "system": column}).messages == turns
        assert len(collected) == remarks


def test_an_empty_answer_is_none() -> None:
    for row in ({"question": "hi", "answer": ""}, {"instruction": "hi", "output": " \n"}):
        assert read(row) == Sample(messages=CHAT[:1])
    sample = read({"instruction": "hi", "output": "", "history": [["hi", "yes"]]})
    assert sample.messages == [*CHAT, CHAT[0]] and sample.untrained_messages == {1}


FUNCTION = {"name": "f", "arguments": '{"a": 1}'}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": FUNCTION}]}


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"role": "assistant", "content": None, "function_call": FUNCTION}, ""),
        ({"role": "assistant", "content": "let me see", "function_call": FUNCTION, "tool_calls": None}, "let me see"),
        ({"from": "function_call", "value": json.dumps(FUNCTION)}, ""),
        ({"role": "tool_call", "content": json.dumps([FUNCTION])}, ""),
    ],
)
def test_calls_of_other_formats_are_tool_calls(turn: dict[str, Any], words: str) -> None:
    answered = {"role": "function", "name": "f", "content": "2"}
    observed = {"from": "observation", "value": "2"}
    sample = read({"messages": [CHAT[0], turn, observed, answered], "functions": [{"name": "f"}]})
    assert sample.messages[:3] == [CHAT[0], {**CALLED, "content": words}, {"role": "tool", "content": "2"}]
    assert sample.messages[3] == {"role": "tool", "content": "2", "name": "f"}
    assert sample.tools == [{"type": "function", "function": {"name": "f"}}]


def test_calls_one_after_the_other_are_one_turn() -> None:
    called = {"role": "tool_call", "content": json.dumps(FUNCTION)}
    calls = CALLED["tool_calls"] * 2
    assert read({"messages": [CHAT[0], called, called, CHAT[1]]}).messages == [
        CHAT[0],
        {**CALLED, "tool_calls": calls},
        CHAT[1],
    ]
    sample = read({"messages": [CHAT[0], {**called, "loss": False}, called]})
    assert len(sample.messages) == 3 and sample.untrained_messages == {1}


@pytest.mark.parametrize("pair", [("instruction", "output"), ("query", "response"), ("question", "answer")])
def test_the_questions_and_answers_before_come_first(pair: tuple[str, str]) -> None:
    row = dict(zip(pair, ("hi", "yes"), strict=True))
    for none in (None, [], ""):
        assert read({**row, "history": none}).messages == CHAT
    with collect() as collected:
        assert read({**row, "history": "They met."}).messages == CHAT
    assert list(collected) == [("has columns that nothing reads", "history")]
    for history in ([["hi", "yes"]] * 2, '[["hi", "yes"], ["hi", "yes"]]'):
        assert read({**row, "history": history}).messages == CHAT * 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "a", "answer": 2}, r"message 2 \(assistant\) has the content 2; expected text"),
        ({"problem": None, "answer": "a"}, "problem is missing; the row has answer"),
        ({"text": "a"}, "no known format has the columns text; known are messages .*causal trainer"),
        ({"a": 1, "b": 2}, "no known format has the columns a, b"),
        ({"messages": []}, "a chat is a list of messages, not \\[\\]"),
        ({"messages": None}, "messages is missing; the row has nothing"),
        ({"messages": "{"}, "the chat is '{', which is not JSON"),
        ({"messages": ["hi"]}, "message 1 is 'hi'; expected a mapping"),
        ({"messages": [CHAT[0], {"text": "x"}]}, "message 2 has the keys text; expected role and content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 1 has the unknown role 'robot'; known are system"),
        ({"messages": [{"role": None, "content": "x"}]}, "unknown role None"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, r"message 2 \(assistant\) has no content"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": ""}]}, r"message 2 \(assistant\) has no content"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": " \n"}]}, r"message 2 \(assistant\) has no content"),
        ({"messages": [{"role": "user"}]}, r"message 1 \(user\) has no content"),
        ({"messages": [{**CHAT[1], "weight": 0.5}]}, r"message 1 \(assistant\) has the weight 0.5; expected 0 or 1"),
        (
            {"instruction": "a", "output": "b", "history": [["c"]]},
            r"history is \[\['c'\]\]; expected a list of \[question, answer",
        ),
        ({"prompt": None, "completion": "x"}, "prompt is missing; the row has completion"),
        ({"messages": CHAT, "tools": "f"}, "tools is 'f', which is not JSON"),
        (
            {"messages": [{**CHAT[1], "train": "maybe"}]},
            r"message 1 \(assistant\) has the train 'maybe'; expected 0",
        ),
        ({"messages": [{**CHAT[1], "train": True, "weight": 0}]}, "weight: 0, train: True, which disagree|disagree"),
        ({"messages": [{**CHAT[1], "train_detail": [{"train": False}]}]}, "train_detail: a message is learned in full"),
        ({"prompt": "hi", "completion": "no", "label": False}, "label is false: .* KTO"),
        ({"question": "hi", "answer": "no", "label": "False"}, "label is false: .* KTO"),
        ({"messages": CHAT, "kto_tag": False}, "kto_tag is false: .* KTO"),
        ({"messages": CHAT, "kto_tag": "0"}, "kto_tag is 0: .* KTO"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "the dpo trainer reads chosen and rejected"),
        ({"messages": [{**CALLED, "function_call": FUNCTION}]}, "has both function_call and tool_calls"),
        ({"messages": [{"from": "function_call", "value": "f(1)"}]}, "the call of message 1 .* which is not JSON"),
        (
            {"messages": [{"from": "function_call", "value": "[1]"}]},
            "the call 1; expected a mapping with name",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            r"message 1 \(user\) has a part of the type image_url; only text is read",
        ),
        ({"messages": CHAT, "tools": [1]}, r"tools have 1; expected the description of a function, a mapping"),
        ({"instruction": "a", "input": 0, "output": "b"}, "instruction and input are 'a' and 0; expected text"),
        ({"prompt": str(CHAT[:1]), "completion": "yes"}, r"\[\{'role': .* as Python prints them; expected JSON"),
        ({"prompt": "hi", "response": "[ {'content': 'a', 'role': 'b'}]"}, "are messages as Python prints them"),
        ({"messages": CHAT, "system": ["a"]}, r"system is \['a'\]; expected text"),
        ({"question": "a", "context": {"b": 1}, "answer": "c"}, "question and context are .*; expected text"),
    ],
)
def test_what_does_not_fit_is_said(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(row)


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize(
    "part", [{"type": "text"}, {"type": "text", "text": None}, {"type": "text", "content": "yes"}, {"text": 3}, 3, None]
)
def test_a_part_without_a_text_is_refused(role: str, part: object) -> None:
    """A template would print it as Python does, or leave it out."""
    for content in ([part], [{"type": "text", "text": "yes"}, part]):
        with pytest.raises(DataError, match=rf"message 2 \({role}\) has the part .* without a text; only text is read"):
            read({"messages": [CHAT[0], {"role": role, "content": content}, *CHAT]})


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text", None])
def test_an_answer_of_empty_parts_is_refused(kind: str | None) -> None:
    for parts in ([], [{"type": kind, "text": ""}], [{"type": kind, "text": " "}, {"type": kind, "text": ""}]):
        with pytest.raises(DataError, match=r"message 2 \(assistant\) has no content"):
            read({"messages": [CHAT[0], {"role": "assistant", "content": parts}]})
        called = {"role": "assistant", "content": parts, "tool_calls": [CALL]}
        assert read({"messages": [CHAT[0], called]}).messages[1]["tool_calls"] == [CALL]
    answer = {"role": "assistant", "content": [{"type": kind, "text": "yes"}]}
    assert read({"messages": [CHAT[0], answer]}).messages[1] == answer


@pytest.mark.parametrize("calls", [[CALL], CALL, json.dumps([CALL]), json.dumps(CALL)])
def test_tool_calls_are_a_list_of_calls(calls: object) -> None:
    read_calls = read({"messages": [CHAT[0], {"role": "assistant", "tool_calls": calls}]}).messages[1]["tool_calls"]
    assert read_calls == [CALL]


@pytest.mark.parametrize(
    "calls", ["f(1)", "5", ["f"], 5, [None], [{}], [{"function": {"arguments": {}}}], [{"function": {"name": ""}}]]
)
def test_calls_without_a_name_are_refused(calls: object) -> None:
    for content in (None, "", "yes"):
        with pytest.raises(DataError, match=r"message 2 \(assistant\).*(has the call|is 'f\(1\)', which is not JSON)"):
            read({"messages": [CHAT[0], {"role": "assistant", "content": content, "tool_calls": calls}]})


@pytest.mark.parametrize(
    ("first", "second"),
    [(("system", "be kind"), ("system_prompt", "be brief")), (("tools", [CALL]), ("functions", [{}]))],
)
def test_a_second_column_of_the_same_meaning_is_remarked(first: Any, second: Any) -> None:
    both = {"messages": CHAT, **dict([first, second])}
    with collect() as remarks:
        sample = read(both)
    assert sample == read({"messages": CHAT, **dict([first])})
    assert list(remarks) == [("has columns that nothing reads", second[0])]
    with collect() as remarks:
        read({**both, second[0]: None})
    assert not remarks
