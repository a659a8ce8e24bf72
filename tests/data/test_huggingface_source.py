"""Hugging Face data sets: local folders, splits and columns of any name."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from arctic_training.data.factories.causal import CausalDataConfig
from arctic_training.data.factories.sft import SFTDataConfig
from arctic_training.data.formats.chat import reader
from arctic_training.data.formats.remarks import collect
from arctic_training.data.sources.arrow_rows import RowReader
from arctic_training.errors.types import DataError
from arctic_training.registry import lookup


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    split = {name: Dataset.from_dict({"text": [f"{name}{n}" for n in range(4)]}) for name in ("train", "test")}
    DatasetDict(split).save_to_disk(folder / "both")
    split["train"].save_to_disk(folder / "one")
    (folder / "files").mkdir()
    for name in ("train", "validation"):
        split["train"].to_json(folder / "files" / f"{name}.jsonl")
    turns = [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]]
    Dataset.from_dict({"talk": turns, "ask": ["q"], "say": ["a"], "more": [""]}).save_to_disk(folder / "chats")
    return folder


def load(config_type: Any, split: str = "train", **section: Any) -> Any:
    config = config_type.model_validate({"sources": [section]}).sources[0]
    source: Any = lookup("data_source", config.type)
    return source(None, config)(split)


def texts(folder: Path, name: str, split: str = "train", **section: Any) -> list[str]:
    section = {"type": "huggingface_causal", **section}
    return list(load(CausalDataConfig, split, name_or_path=str(folder / name), **section)["text"])


def test_splits(folder: Path) -> None:
    assert texts(folder, "both") == ["train0", "train1", "train2", "train3"]
    assert texts(folder, "both", "eval") == ["test0", "test1", "test2", "test3"]
    assert texts(folder, "both", split_mapping={"train": "test"}) == ["test0", "test1", "test2", "test3"]
    assert texts(folder, "both", "eval", split_mapping={"eval": "train"})[0] == "train0"
    assert texts(folder, "both:test[:1]") == ["test0"]
    assert texts(folder, "both", split="test[50%:]") == ["test2", "test3"]
    assert texts(folder, "one") == texts(folder, "one", "eval") == texts(folder, "both")
    assert texts(folder, "files", "eval") == ["train0", "train1", "train2", "train3"]


def test_one_file(folder: Path) -> None:
    assert texts(folder, "files/validation.jsonl") == texts(folder, "files/validation.jsonl", "eval")
    assert texts(folder, "files/train.jsonl:train[:1]") == ["train0"]
    Dataset.from_dict({"q": ["1"], "a": ["2"]}).to_json(folder / "qa[1].jsonl")
    roles = {"role_mapping": {"user": "q", "assistant": "a"}, "type": "huggingface_instruct"}
    (row,) = load(SFTDataConfig, name_or_path=str(folder / "qa[1].jsonl"), **roles)
    assert [turn["content"] for turn in row["messages"]] == ["1", "2"]


def test_words_in_a_folder_of_csv_files_are_text(tmp_path: Path) -> None:
    words = ["NA", "null", "None", "nan", "n/a", "word"]
    (tmp_path / "train.csv").write_text("system,question,answer\n" + "".join(f"{one},{one},{one}\n" for one in words))
    roles = {"role_mapping": {"system": "system", "user": "question", "assistant": "answer"}}
    for name in (tmp_path, tmp_path / "train.csv"):
        rows = load(SFTDataConfig, name_or_path=str(name), type="huggingface_instruct", **roles)
        assert [[turn["content"] for turn in row["messages"]] for row in rows] == [[one] * 3 for one in words]
    pandas = load(SFTDataConfig, name_or_path=str(tmp_path), type="huggingface", kwargs={"keep_default_na": True})
    assert pandas["answer"][:] == [None] * 5 + ["word"]


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl", "more.jsonl", "deep/train-2.jsonl", "_old/a.jsonl", "dataset_infos.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}" if "infos" in name else '{"text": "one"}\n')
    (tmp_path / "other.csv").write_text("text\none\n")
    (tmp_path / "README.md").write_text("read me\n")
    with collect() as remarks:
        assert len(load(CausalDataConfig, name_or_path=str(tmp_path))) == 2
    assert {name for _, name in remarks} == {"more.jsonl", "other.csv"}


@pytest.mark.parametrize(("name", "row"), [("TEXTS.JSONL", '{"text": "one"}'), ("damaged.jsonl", '{"text": "one')])
def test_a_file_that_datasets_does_not_read(tmp_path: Path, name: str, row: str) -> None:
    (tmp_path / name).write_text(f"{row}\n")
    message = "the library datasets does not read it; give type: jsonl in place of type: huggingface_causal"
    with pytest.raises(DataError, match=f"{name} cannot be loaded: {message}$"):
        texts(tmp_path, name)


def test_what_is_not_there(folder: Path) -> None:
    for section, message in [
        ({"name_or_path": str(folder / "both"), "split": "dev"}, "there is no split 'dev'; there are train, test"),
        ({"name_or_path": str(folder / "both"), "column": "body"}, "no column 'body', which column names; there are"),
        ({"name_or_path": str(folder / "none")}, r"cannot be loaded: Couldn.t find any data file at .*none\.$"),
        (
            {"name_or_path": "nobody/nothing"},
            "data set nobody/nothing cannot be loaded: .*; HF_HUB_OFFLINE is set",
        ),
        ({"name_or_path": str(folder / "both"), "split": "train[9:]"}, "there are no rows in train"),
    ]:
        with pytest.raises(DataError, match=message):
            load(CausalDataConfig, **section)


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    "section",
    [
        {"role_mapping": {"user": "ask", "assistant": "say"}},
        {"role_mapping": {"system": "more", "user": "ask", "assistant": "say"}},
        {"role_mapping": {"user": "talk.from.human", "assistant": "talk.from.gpt"}},
        {"role_mapping": {"user": "talk.from.human", "assistant": "talk.from.gpt"}, "content_key": "value"},
    ],
)
def test_roles(folder: Path, section: dict[str, Any]) -> None:
    assert load(SFTDataConfig, name_or_path=str(folder / "chats"), **section)[0] == {"messages": CHAT}


def test_what_else_a_turn_says_stays(folder: Path) -> None:
    question = {"from": "human", "value": "now?"}
    calls = [{"function": {"name": "time", "arguments": {"zone": "UTC"}}}]
    called = {"from": "gpt", "value": None, "tool_calls": calls, "weight": 0}
    answered = {"from": "gpt", "value": "noon", "tool_calls": None, "weight": 1}
    tools = [{"type": "function", "function": {"name": "time"}}]
    path = folder / "calls.jsonl"
    path.write_text(json.dumps({"talk": [question, called, answered], "tools": tools, "id": 7}) + "\n")
    mapping = {"user": "talk.from.human", "assistant": "talk.from.gpt"}
    rows = load(SFTDataConfig, name_or_path=str(path), type="huggingface_instruct", role_mapping=mapping)
    (row,) = RowReader(rows.features)(rows.with_format("arrow")[:])
    sample = reader(rows.column_names)(row)
    assert sample.messages == [
        {"role": "user", "content": "now?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "assistant", "content": "noon"},
    ]
    assert sample.tools == tools and sample.untrained_messages == {1}


def test_roles_that_do_not_fit(folder: Path) -> None:
    mapping = {"user": "talk.from.human", "assistant": "talk.from.gpt"}
    for section, message in [
        ({"role_mapping": {"user": "asked"}}, "no column 'asked', which role_mapping names"),
        ({"role_mapping": {"user": "talk.from.human"}}, "turn 2 says from: 'gpt', which role_mapping does not name"),
        ({"role_mapping": mapping, "content_key": "words"}, "turn 1 has no 'words', which content_key names"),
    ]:
        with pytest.raises(DataError, match=message):
            load(SFTDataConfig, name_or_path=str(folder / "chats"), **section)
    for mapping, message in [({"robot": "ask"}, "'robot' is no role"), ({"user": "a.b"}, "neither a column nor")]:
        with pytest.raises(ValueError, match=message):
            SFTDataConfig.model_validate({"sources": [{"name_or_path": "x", "role_mapping": mapping}]})
