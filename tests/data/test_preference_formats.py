"""Formats of preference data."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.preference import Preference, Reader, reader
from arctic_training.data.formats.remarks import collect, lines
from arctic_training.errors.types import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def preference(row: dict[str, Any], prompt_column: str | None) -> Preference:
    prompt = () if prompt_column is None else (prompt_column,)
    return Reader("chosen", "rejected", prompt, as_chat=prompt_column not in (None, "prompt"))(row)


GOOD = Sample([user("hi"), assistant("hello")])
BAD = Sample([user("hi"), assistant("go away")])


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [user("hi"), assistant("hello")], "rejected": [user("hi"), assistant("go away")]},
        {  # ultrafeedback: the prompt beside whole chats, and scores
            "prompt": "hi",
            "prompt_id": "1",
            "chosen": [user("hi"), assistant("hello")],
            "rejected": [user("hi"), assistant("go away")],
            "messages": [user("hi"), assistant("hello")],
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        },
        {"prompt": [user("hi")], "chosen": [assistant("hello")], "rejected": [assistant("go away")]},
        {"prompt": "hi", "chosen": [assistant("hello")], "rejected": [assistant("go away")]},
        {"problem": "hi", "chosen": "hello", "rejected": "go away"},
        {"prompt": [user("hi")], "chosen": "hello", "rejected": "go away"},
        {"instruction": "hi", "chosen": [assistant("hello")], "rejected": [assistant("go away")]},
        {"question": "hi", "chosen": "hello", "rejected": "go away"},
        {"prompt": "hi", "chosen": json.dumps([assistant("hello")]), "rejected": json.dumps([assistant("go away")])},
        {"question": "hi", "response_chosen": "hello", "response_rejected": "go away"},
        {"prompt": [user("hi")], "chosen_response": "hello", "rejected_response": "go away"},
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "hello"},
            "rejected": {"from": "gpt", "value": "go away"},
        },
        {
            "input": {"messages": [user("hi")], "tools": []},
            "preferred_output": [assistant("hello")],
            "non_preferred_output": [assistant("go away")],
        },
        {  # other words for the same
            "chosen": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
            "rejected": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "go away"}],
        },
    ],
)
def test_chats(row: dict[str, Any]) -> None:
    assert reader(list(row))(row) == Preference(GOOD, BAD)


def test_only_the_completions_differ_in_a_long_chat() -> None:
    before = [user("1"), assistant("2"), user("3")]
    row = {"chosen": [*before, assistant("4")], "rejected": [*before, assistant("5"), user("6"), assistant("7")]}
    read = reader(list(row))(row)
    assert (read.chosen_turns, read.rejected_turns) == (1, 2)


def test_completions_to_different_prompts_are_refused() -> None:
    for other in ([user("ho"), assistant("no")], [{"role": "system", "content": "be kind"}, *GOOD.messages]):
        for chosen, rejected in ((GOOD.messages, other), (other, GOOD.messages)):
            with pytest.raises(DataError, match=r"begin with different messages; .* two completions to one prompt"):
                reader(["chosen", "rejected"])({"chosen": chosen, "rejected": rejected})


def test_system_and_tools_reach_both() -> None:
    row = {"system": "be kind", "tools": '[{"name": "f"}]', "prompt": "hi", "chosen": [assistant("a")]}
    read = reader(["prompt", "chosen", "rejected"])({**row, "rejected": [assistant("b")]})
    for sample, text in ((read.chosen, "a"), (read.rejected, "b")):
        assert sample.messages == [{"role": "system", "content": "be kind"}, user("hi"), assistant(text)]
        assert sample.tools == [{"name": "f"}]


@pytest.mark.parametrize(
    ("first", "second"), [("instruction", "input"), ("prompt", "context"), ("question", "context")]
)
def test_a_prompt_of_several_parts_is_joined(first: str, second: str) -> None:
    read = reader([first, second, "chosen", "rejected"])
    row = {first: "add", "chosen": "3", "rejected": "4"}
    assert read({**row, second: "1 2"}).chosen.messages == [user("add\n\n1 2"), assistant("3")]
    assert read({**row, second: ""}).rejected.messages == [user("add"), assistant("4")]
    assert read({**row, "chosen": [assistant("3")], second: "1 2"}).chosen.messages[0] == user("add\n\n1 2")


def test_the_questions_and_answers_before_come_first() -> None:
    before = [user("1"), assistant("2")]
    for row in ({"instruction": "hi"}, {"prompt": "hi"}, {"question": "hi"}):
        row |= {"chosen": "hello", "rejected": "go away", "history": [["1", "2"]]}
        with collect() as remarks:
            read = reader(list(row))(row)
        assert [sample.messages for sample in (read.chosen, read.rejected)] == [
            [*before, *sample.messages] for sample in (GOOD, BAD)
        ]
        assert (read.chosen_turns, read.rejected_turns) == (1, 1) and not remarks


@pytest.mark.parametrize(
    ("prompt", "remarked"),
    [
        ("hi", False),
        ([user("hi")], False),
        ([{"role": "system", "content": "be kind"}, user("hi")], True),
        ("another", True),
    ],
)
def test_a_prompt_that_chats_do_not_begin_with_is_remarked(prompt: Any, remarked: bool) -> None:
    row = {"prompt": prompt, "chosen": GOOD.messages, "rejected": BAD.messages}
    with collect() as remarks:
        assert reader(list(row))(row) == Preference(GOOD, BAD)
    assert any("are not read" in line for line in lines(remarks, "rows")) == remarked


def test_texts_with_a_system_prompt_are_chats() -> None:
    row = {"system": "be kind", "prompt": "hi", "chosen": "hello", "rejected": "go away"}
    chats = [[{"role": "system", "content": "be kind"}, *sample.messages] for sample in (GOOD, BAD)]
    assert reader(list(row))(row) == Preference(*map(Sample, chats))


def test_flags_in_the_prompt_change_nothing() -> None:
    before = [user("1"), {**assistant("2"), "weight": 0}, user("3")]
    read = preference({"prompt": before, "chosen": [assistant("4")], "rejected": [assistant("5")]}, "prompt")
    assert read.chosen.messages == [user("1"), assistant("2"), user("3"), assistant("4")]
    assert (read.chosen_turns, read.rejected_turns) == (1, 1)


def test_texts() -> None:
    row = {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}
    read = reader(list(row))(row)
    assert read.chosen == Sample(prompt="1 + 1 =", completion=" 2")
    assert read.rejected == Sample(prompt="1 + 1 =", completion=" 3")


@given(st.text(alphabet="ab \n", max_size=12), st.text(alphabet="ab ", max_size=6), st.text(alphabet="ab ", max_size=6))
def test_texts_with_a_common_beginning(prompt: str, one: str, other: str) -> None:
    chosen, rejected = prompt + one, prompt + other
    read = preference({"chosen": chosen, "rejected": rejected}, None)
    assert read.chosen.prompt == read.rejected.prompt
    assert read.chosen.prompt + read.chosen.completion == chosen
    assert read.rejected.prompt + read.rejected.completion == rejected
    for sample in (read.chosen, read.rejected):
        assert not sample.prompt[-1:].isspace()
        assert not sample.prompt or sample.completion[:1].isspace() or not sample.completion


def test_texts_that_repeat_the_prompt_beside_them() -> None:
    read = preference({"prompt": "Q: hi\nA:", "chosen": "Q: hi\nA: hello", "rejected": "Q: hi\nA: go"}, "prompt")
    assert (read.chosen, read.rejected) == (
        Sample(prompt="Q: hi\nA:", completion=" hello"),
        Sample(prompt="Q: hi\nA:", completion=" go"),
    )


def test_dialogues_in_plain_text() -> None:
    prompt = "\n\nHuman: Who are you?\n\nAssistant:"
    read = preference({"chosen": f"{prompt} A model.", "rejected": f"{prompt} A man."}, None)
    assert read.chosen == Sample(prompt=f"{prompt} A", completion=" model.")


def test_texts_without_a_prompt_rate_but_do_not_answer() -> None:
    row = {"question_of_the_user": "is it?", "chosen": "yes it is", "rejected": "no it is not"}
    with pytest.raises(DataError, match="chosen and rejected do not begin with the same words, which would be the pro"):
        reader(list(row))(row)
    read = reader(list(row), needs_prompt=False)(row)
    assert (read.chosen.completion, read.rejected.completion) == ("yes it is", "no it is not")
    assert not reader(list(row))({**row, "rejected": row["chosen"]}).decided
    assert reader([*row, "prompt"])({**row, "prompt": ""}).decided


def test_what_decides_nothing() -> None:
    same = [user("hi"), assistant("hello")]
    assert not preference({"chosen": same, "rejected": same}, None).decided
    assert not preference({"chosen": [user("hi")], "rejected": same}, None).decided
    assert not preference({"problem": "hi", "chosen": "hello", "rejected": " "}, "problem").decided
    for weight in (0, "0"):
        row = {"prompt": "hi", "chosen": "hello", "rejected": "no", "weight": weight}
        assert not preference(row, "prompt").decided
    assert preference({"chosen": GOOD.messages, "rejected": BAD.messages}, None).decided


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "no preferences are in the columns messages; expected chosen and rejected"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "stands alone"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "chosen is empty"),
        ({"prompt": "p", "completion": "a", "label": True}, "completion and label are unpaired .* KTO"),
        (
            {"prompt": "p", "chosen": [{**assistant("a"), "train": False}], "rejected": [assistant("b")]},
            "message 2 has the train false; a preference needs both completions",
        ),
        (
            {"messages": [user("a"), assistant("b")], "chosen": "c", "rejected": "d"},
            "prompt ends with an assistant message",
        ),
        ({"prompt": "p", "chosen": str([assistant("a")]), "rejected": str([assistant("b")])}, "as Python prints them"),
        ({"prompt": "p", "chosen": [{"role": "oracle", "content": "x"}], "rejected": "b"}, "unknown role 'oracle'"),
    ],
)
def test_refusals(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reader(list(row))(row)
