"""The shapes in which instruction data come."""

from typing import Any

import pytest

from arctic_training.data.shapes import Sample, reader
from arctic_training.errors import DataError

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
        {"prompt": CHAT[:1], "completion": "yes"},
        {"problem": "hi", "answer": "yes", "seed": 7},
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
    told = read({"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None}]})
    assert told.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_a_message_of_weight_0_is_context() -> None:
    silent = {**CHAT[1], "weight": 0}
    turns = [{**CHAT[0], "weight": 0}, silent, CHAT[0], {**CHAT[1], "weight": 1}]
    assert read({"messages": turns}) == Sample(messages=CHAT * 2, context=frozenset({1}))
    assert read({"messages": turns, "system": "be kind"}).context == {2}
    assert read({"prompt": [CHAT[0], silent, CHAT[0]], "completion": "yes"}).context == {1}


def test_the_history_of_alpaca_comes_first() -> None:
    row = {"instruction": "hi", "output": "yes"}
    for none in (None, [], ""):
        assert read({**row, "history": none}).messages == CHAT
    for history in ([["hi", "yes"]] * 2, '[["hi", "yes"], ["hi", "yes"]]'):
        assert read({**row, "history": history}).messages == CHAT * 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"problem": "a", "answer": 2}, r"message 2 \(assistant\) has the content 2; text is wanted"),
        ({"problem": None, "answer": "a"}, "problem is missing; the row has answer"),
        ({"text": "a"}, "no known shape has the columns text; known are messages .*causal trainer"),
        ({"a": 1, "b": 2}, "no known shape has the columns a, b"),
        ({"messages": []}, "a chat is a list of messages, not \\[\\]"),
        ({"messages": None}, "messages is missing; the row has nothing"),
        ({"messages": "{"}, "the chat is '{', which is not JSON"),
        ({"messages": ["hi"]}, "message 1 is 'hi'; wanted is a mapping"),
        ({"messages": [CHAT[0], {"text": "x"}]}, "message 2 has the keys text; wanted are role and content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 1 has the unknown role 'robot'; known are system"),
        ({"messages": [{"role": None, "content": "x"}]}, "unknown role None"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, r"message 2 \(assistant\) has no content"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": ""}]}, r"message 2 \(assistant\) has no content"),
        ({"messages": [{"role": "user"}]}, r"message 1 \(user\) has no content"),
        ({"messages": [{**CHAT[1], "weight": 0.5}]}, r"message 1 \(assistant\) has the weight 0.5; 0 or 1 is wanted"),
        (
            {"instruction": "a", "output": "b", "history": [["c"]]},
            r"history is \[\['c'\]\]; a list of \[question, answer",
        ),
        ({"prompt": None, "completion": "x"}, "prompt is missing; the row has completion"),
        ({"messages": CHAT, "tools": "f"}, "tools is 'f', which is not JSON"),
    ],
)
def test_what_does_not_fit_is_said(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(row)
