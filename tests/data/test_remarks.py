"""Unread columns and message keys, and texts without an end, are logged once for a source."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.data.factories.dpo import DPODataFactory
from arctic_training.data.factories.prompt import PromptDataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.remarks import collect, lines, remark
from arctic_training.data.preparation import map_rows
from arctic_training.data.preparation.prompt_encoder import SourceTargetEncoder
from arctic_training.data.tokenization.encoder import SampleEncoder
from tests.data import templates
from tests.data.view import make

TOKENIZER = templates.byte_level(templates.CALLS)
"""Its template reads role, content and tool_calls."""
ASKED = {"role": "user", "content": "q", "id": 7}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
CHAT = [
    ASKED,
    {"role": "assistant", "content": "a", "tool_calls": [CALL]},
    ASKED,
    {"role": "assistant", "content": "b"},
]
UNREAD = "has columns that nothing reads: images, score"
ROWS: dict[Any, dict[str, Any]] = {
    SFTDataFactory: {"messages": CHAT},
    PromptDataFactory: {"messages": CHAT},
    DPODataFactory: {"chosen": CHAT, "rejected": [*CHAT[:3], {"role": "assistant", "content": "c"}]},
    CausalDataFactory: {"text": "a text"},
}


def prepare(factory: Any, folder: Path, rows: list[dict[str, Any]], **section: Any) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make(factory, TOKENIZER, {"sources": [str(path)], "cache_dir": str(folder / "cache"), **section})()


@pytest.mark.parametrize("factory", ROWS, ids=lambda factory: factory.name)
def test_what_nothing_reads_is_named_once_for_a_source(factory: Any, tmp_path: Path, messages: list[str]) -> None:
    rows = [ROWS[factory], {**ROWS[factory], "score": 1, "images": ["x.png"]}] * 3
    for _ in range(2):  # the second time out of the cache
        prepare(factory, tmp_path, rows)
        expected = [UNREAD]
        if factory is not CausalDataFactory:
            expected.append("has message keys that nothing reads: id")
        assert sorted(messages) == [f"{tmp_path / 'rows.jsonl'} {line}" for line in expected]
        messages.clear()


@pytest.mark.parametrize("has_end", [True, False])
def test_texts_that_no_end_token_ends_are_remarked(has_end: bool, tmp_path: Path, messages: list[str]) -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = None
    tokenizer.eos_token = "<|im_end|>" if has_end else None
    pair = Sample(prompt="a question", completion=" an answer")
    encoders = (
        lambda: SampleEncoder(tokenizer)([pair]),
        lambda: SourceTargetEncoder(tokenizer, encoder_decoder=False).encode_pairs([pair], 0),
        lambda: SourceTargetEncoder(tokenizer, encoder_decoder=True).encode_pairs([pair], 0),
    )
    for encode in encoders:
        with collect() as remarks:
            encode()
        assert any("without an end token" in line for line in lines(remarks, "x")) != has_end
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a text"}) + "\n")
    make(CausalDataFactory, tokenizer, {"sources": [str(path)], "cache_dir": str(tmp_path / "cache")})()
    assert len(messages) == (not has_end)


def test_other_processes_remark_too(tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_rows, "_MIN_ROWS_PER_PROCESS", 10)
    monkeypatch.setattr(map_rows, "_BATCH_SIZE", 5)
    plain = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    prepare(SFTDataFactory, tmp_path, [plain] * 19 + [{"messages": CHAT, "score": 1}], num_proc=2)
    assert len(messages) == 2 and messages[0].endswith("reads: score") and messages[1].endswith("reads: id")


def test_a_stream_remarks_once(tmp_path: Path, messages: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": CHAT, "score": 1}) + "\n")
    section = {"sources": [{"name_or_path": str(path), "streaming": True}], "stream_buffer": 2}
    loader = make(SFTDataFactory, TOKENIZER, section, train_iters=9)().train
    assert len([batch for _, batch in zip(range(9), loader, strict=False)]) == 9
    loader.close()
    assert [line.removeprefix(str(path)) for line in messages] == [
        " has columns that nothing reads: score",
        " has message keys that nothing reads: id",
    ]


def test_columns_beside_a_role_mapping_are_named(tmp_path: Path, messages: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"ask": "q", "say": "a", "images": ["x"]}) + "\n")
    source = {"type": "huggingface_instruct", "name_or_path": str(path)}
    source["role_mapping"] = {"user": "ask", "assistant": "say"}  # type: ignore[assignment]
    make(SFTDataFactory, TOKENIZER, {"sources": [source], "cache_dir": str(tmp_path / "cache")})()
    assert messages == [f"{path} has columns that nothing reads: images"]


def test_a_remark_that_fails_once_is_withdrawn_in_any_order() -> None:
    with collect() as remarks:
        for holds in (True, False, True):
            remark("reads nothing of", "a", holds=holds)
            remark("reads nothing of", "b", holds=True)
        remark("is odd")
    assert lines(remarks, "x") == ["x is odd", "x reads nothing of: b"]
    remark("is heard by nobody")


def test_messages_of_others_that_are_to_be_learned_are_remarked(tmp_path: Path, messages: list[str]) -> None:
    turns = [{"role": "user", "content": "q", "train": True}, {"role": "assistant", "content": "a", "train": False}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "b"}]}]
    data = prepare(SFTDataFactory, tmp_path, rows).train.dataset
    assert TOKENIZER.decode([label for label in data[0]["labels"] if label != -100]) == "b<|im_end|>"
    assert len(messages) == 1 and "are not the assistant's, which are not learned" in messages[0]
