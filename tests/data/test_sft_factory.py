"""SFT data from a file to batches: labels, dropped rows, log messages and errors."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from arctic_training.data.factories.causal import CausalDataConfig
from arctic_training.data.factories.dpo import DPODataConfig
from arctic_training.data.factories.prompt import PromptDataConfig
from arctic_training.data.factories.seq2seq import Seq2SeqDataConfig
from arctic_training.data.factories.sft import SFTDataConfig, SFTDataFactory
from arctic_training.data.factories.unpaired_preference import UnpairedPreferenceDataConfig
from arctic_training.data.sources.base import DataSource
from arctic_training.errors.types import DataError
from tests import tiny
from tests.data import templates
from tests.data.view import make

TOKENIZER = templates.byte_level(templates.CALLS)


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sft(folder: Path, rows: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    view = {name: more.pop(name) for name in ("rank", "world", "micro") if name in more}
    sources = [write(folder, rows)] if rows is not None else more.pop("sources")
    return make(SFTDataFactory, TOKENIZER, {"sources": sources, "cache_dir": str(folder / "cache"), **more}, **view)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def texts(dataset: Any) -> list[str]:
    return [TOKENIZER.decode(dataset[n]["input_ids"]) for n in range(len(dataset))]


def answers(dataset: Any) -> list[str]:
    rows = [dataset[n] for n in range(len(dataset))]
    return [TOKENIZER.decode(row["input_ids"][row["labels"] != -100]) for row in rows]


def test_batches_hold_every_row_once(tmp_path: Path) -> None:
    rows = [chat(f"q{n}", f"a{n}") for n in range(7)]
    batches = list(sft(tmp_path, rows, micro=2)().train)
    learned = [TOKENIZER.decode(row[row != -100]) for batch in batches for row in batch["labels"]]
    assert sorted(learned) == [f"a{n}<|im_end|>" for n in range(7)]
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 2, 1]


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("options", [{}, {"always_max_length": True}, {"pad_to": "max_length"}, {"div_length": 1}])
def test_packed_batches_hold_every_token_once(tmp_path: Path, micro: int, options: dict[str, Any]) -> None:
    rows = tiny.chats(30)
    unpacked, packed = sft(tmp_path, rows)(), sft(tmp_path, rows, pack_samples=True, micro=micro, **options)()
    expected = sorted(token for n in range(30) for token in unpacked.train.dataset[n]["input_ids"].tolist())
    got = []
    for batch in packed.train:
        assert batch["input_ids"].shape[1] <= 512 * micro
        assert batch["max_length_q"] <= 512 * micro
        real = batch["cu_seq_lens_q"][-1].item()
        assert real == batch["input_ids"].shape[1]
        got += batch["input_ids"][0].tolist()
        if options == {"pad_to": "max_length"}:
            assert batch["input_ids"].shape[1] == 512 * micro
    pad = TOKENIZER.pad_token_id
    assert sorted(token for token in got if token != pad) == expected
    if not options:
        targets = sum(int((batch["labels"] != -100).sum()) for batch in packed.train)
        assert targets == sum(int((batch["labels"] != -100).sum()) for batch in unpacked.train)


def test_ranks_share_a_global_batch(tmp_path: Path) -> None:
    rows = tiny.chats(13)
    alone = [batch["labels"] for batch in sft(tmp_path, rows, micro=4)().train]
    pair = [[batch["labels"] for batch in sft(tmp_path, rows, rank=r, world=2, micro=2)().train] for r in range(2)]
    assert len(pair[0]) == len(pair[1]) == len(alone)
    for full, *parts in zip(alone, *pair, strict=True):
        learned = [row[row != -100].tolist() for part in parts for row in part]
        assert [row for row in learned if row] == [row[row != -100].tolist() for row in full]


def test_long_rows_are_left_out_and_counted(tmp_path: Path, messages: list[str]) -> None:
    rows = [chat("q", "yes " * n) for n in (1, 30, 60)]
    assert len(sft(tmp_path, rows, max_length=40)().train) == 1
    assert messages == ["2 of 3 samples are longer than max_length = 40 tokens, and dropped"]
    cut = sft(tmp_path, rows, max_length=40, filter_samples=False)().train.dataset
    assert [len(cut[n]["input_ids"]) for n in range(3)][1:] == [40, 40]
    with pytest.raises(DataError, match=r"3 of 3 samples are longer than max_length = 4 tokens.*nothing is left"):
        sft(tmp_path, rows, max_length=4)()


def test_rows_without_a_target_are_named_and_left_out(tmp_path: Path, messages: list[str]) -> None:
    rows = [chat("q", f"a{n}") for n in range(9)]
    rows.insert(3, {"messages": [{"role": "user", "content": "unanswered"}]})
    assert len(sft(tmp_path, rows, max_share_without_targets="10%")().train) == 9
    assert messages[0].endswith("rows.jsonl: 1 of 10 rows have no target token: 4; they are dropped")
    assert len(sft(tmp_path, rows, max_share_without_targets="10%")().train) == 9
    assert messages[1] == messages[0]  # also when it comes out of the cache
    with pytest.raises(DataError, match=r"no target token: 4; more than data.max_share_without_targets = 0\.05"):
        sft(tmp_path, rows)()


@pytest.mark.parametrize("columns", ["prompt,completion", "question,answer"])
@pytest.mark.parametrize("mask", [True, False])
def test_empty_answers_are_left_out_and_counted(tmp_path: Path, messages: list[str], columns: str, mask: bool) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{columns}\n1+1,2\n1+2,\n1+3,4\n1+4, \n", encoding="utf-8")
    samples = sft(tmp_path, sources=[str(path)], max_share_without_targets=0.5, mask_inputs=mask)().train.dataset
    if mask:
        assert messages == [f"{path}: 2 of 4 rows have no target token: 2, 4; they are dropped"]
        assert [answer.replace("<|im_end|>", "") for answer in answers(samples)] == ["2", "4"]
    else:
        assert len(samples) == 4  # their questions are targets


@pytest.mark.parametrize("options", [{}, {"pack_samples": True}, {"pack_samples": True, "always_max_length": True}])
def test_rows_that_are_cut_off_before_their_answer_count_as_rows_without_a_target(
    tmp_path: Path, messages: list[str], options: dict[str, Any]
) -> None:
    rows = [chat("q", "yes " * n) for n in (1, 2, 60)] + [chat("q " * 60, "yes")]
    section = {"max_length": 40, "filter_samples": False, "train_eval_split": [0.5, 0.5], **options}
    with pytest.raises(DataError, match=r"1 of 2 samples have no target token within max_length = 40; more than data"):
        sft(tmp_path, rows, **section)()
    messages.clear()
    loaders = sft(tmp_path, rows, **section, max_share_without_targets=0.5)()
    assert "1 of 2 samples have no target token within max_length = 40, and are dropped" in messages
    batches = [batch for loader in (loaders.train, *loaders.evaluation.values()) for batch in loader]
    assert sum(int((batch["input_ids"] == TOKENIZER.encode("q")[0]).sum()) for batch in batches) == 3
    with pytest.raises(DataError, match="2 of 2 samples have no target token within max_length = 40; nothing is left"):
        sft(tmp_path, rows[3:] * 2, **section | {"train_eval_split": [1, 0]})()


CHATS = [
    {"messages": [{"role": ("user", "assistant")[k % 2], "content": f"{who}{k}"} for k in range(turns)]}
    for who, turns in (("a", 4), ("b", 2), ("c", 7))
]


@pytest.mark.parametrize("packs", [False, True])
def test_only_last_answers_are_targets_with_mask_history(tmp_path: Path, messages: list[str], packs: bool) -> None:
    last = {"role": "assistant", "content": "d3", "weight": 0}
    rows = [*CHATS, {"messages": [*CHATS[0]["messages"][:3], last]}]
    section = {"pack_samples": packs, "max_share_without_targets": 0.5, "mask_history": True}
    loaders = sft(tmp_path, rows, **section)()
    learned = "".join(TOKENIZER.decode(batch["labels"][batch["labels"] != -100]) for batch in loaders.train)
    assert sorted(filter(None, learned.split("<|im_end|>"))) == ["a3", "b1", "c5"]
    seen = "".join(TOKENIZER.decode(batch["input_ids"].flatten()) for batch in loaders.train)
    assert all(f"{turn['content']}<|im_end|>" in seen for row in CHATS for turn in row["messages"])
    assert messages[0].endswith("rows.jsonl: 1 of 4 rows have no target token: 4; they are dropped")


def test_a_last_answer_that_is_cut_off_is_no_target_with_mask_history(tmp_path: Path, messages: list[str]) -> None:
    long = {"messages": [*chat("q", "a")["messages"], *chat("q " * 60, "yes")["messages"]]}
    rows = [long, CHATS[1], chat("q", "yes " * 60)]
    section = {"max_length": 40, "filter_samples": False, "max_share_without_targets": 0.5}
    samples = sft(tmp_path, rows, **section, mask_history=True)().train.dataset
    assert "1 of 3 samples have no target token within max_length = 40, and are dropped" in messages
    assert [answer[:4] for answer in answers(samples)] == ["b1<|", "yes "]
    assert len(sft(tmp_path, rows, **section)().train.dataset) == 3


def test_mask_history_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(ValueError, match="mask_history: mask_inputs: false makes every token a target"):
        SFTDataConfig.model_validate({"sources": ["a.jsonl"], "mask_history": True, "mask_inputs": False})
    for config in (CausalDataConfig, DPODataConfig, PromptDataConfig, UnpairedPreferenceDataConfig, Seq2SeqDataConfig):
        with pytest.raises(ValueError, match=r"mask_history\n  Extra inputs are not permitted"):
            config.model_validate({"sources": ["a.jsonl"], "mask_history": True})


def test_a_row_that_is_not_to_be_learned_is_left_out(tmp_path: Path, messages: list[str]) -> None:
    rows = [{"prompt": "a", "completion": "b", "train": True}, {"prompt": "c", "completion": "d", "train": False}]
    for mask in (True, False):
        samples = sft(tmp_path, rows, max_share_without_targets=0.5, mask_inputs=mask)().train.dataset
        assert len(samples) == 1 and "1 of 2 rows have no target token: 2" in messages.pop()


@pytest.mark.fault(30)
def test_bad_rows_are_named_by_source_and_row(tmp_path: Path) -> None:
    rows = [chat("q", "a"), {"messages": [{"role": "robot", "content": "x"}]}]
    with pytest.raises(DataError, match=r"rows.jsonl:2: message 1 has the unknown role 'robot'"):
        sft(tmp_path, rows)()
    rows = [chat("q", f"a{n}") for n in range(20)] + rows[1:]
    with pytest.raises(DataError, match=r"rows.jsonl:21: "):
        sft(tmp_path, sources=[{"name_or_path": write(tmp_path, rows), "sample_ratio": 3}])()
    with pytest.raises(DataError, match=r"rows.jsonl: no known format has the columns a; known are messages"):
        sft(tmp_path, [{"a": 1}])()


def test_tool_calls_survive(tmp_path: Path) -> None:
    def calling(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call], "content": None}]
        }

    rows = [calling("f", {"a": 0.26005620864429313}), calling("g", {"b": None, "c": [1, "x"]}), chat("q", "a")]
    learned = answers(sft(tmp_path, rows)().train.dataset)
    assert learned == [
        '<tool_call>{"name": "f", "arguments": {"a": 0.26005620864429313}}</tool_call><|im_end|>',
        '<tool_call>{"name": "g", "arguments": {"b": null, "c": [1, "x"]}}</tool_call><|im_end|>',
        "a<|im_end|>",
    ]


def test_evaluation_sets(tmp_path: Path) -> None:
    train = write(tmp_path, [chat("q", f"a{n}") for n in range(10)])
    one, two = (write(tmp_path, [chat("q", f"{name}{n}") for n in range(3)], f"{name}.jsonl") for name in "xy")
    loaders = sft(tmp_path, sources=[train], eval_sources=[one])()
    assert answers(loaders.evaluation["eval"].dataset) == [f"x{n}<|im_end|>" for n in range(3)]
    assert list(sft(tmp_path, sources=[train], eval_sources=[one, two])().evaluation) == ["x", "y"]
    assert list(sft(tmp_path, sources=[train], eval_sources=[one, one])().evaluation) == ["x", "x#2"]
    split = sft(tmp_path, sources=[train], train_eval_split=[0.7, 0.3])()
    parts = answers(split.train.dataset), answers(split.evaluation["eval"].dataset)
    assert [len(part) for part in parts] == [7, 3]
    assert sorted(parts[0] + parts[1]) == [f"a{n}<|im_end|>" for n in range(10)]


class Counted(DataSource):
    """Counts its calls."""

    name = "counted_of_a_test"
    calls: ClassVar[list[str]] = []
    changes: ClassVar[bool] = False

    def fingerprint(self, split: str) -> Any:
        self.calls.append(f"fingerprint {split}")
        return None if self.changes else "the same"

    def load(self, config: Any, split: str) -> Any:
        from datasets import Dataset

        self.calls.append(f"load {split}")
        rows = [chat("q", f"a{n}") for n in range(40)] + [{"messages": [{"role": "user", "content": "unanswered"}]}]
        return Dataset.from_list(rows)


@pytest.mark.parametrize("changes", [False, True])
def test_sources_that_are_split_are_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str], changes: bool
) -> None:
    monkeypatch.setattr(Counted, "changes", changes)
    for rows_are_there in (False, True):
        Counted.calls.clear()
        messages.clear()
        loaders = sft(tmp_path, sources=["counted_of_a_test"], train_eval_split=[0.75, 0.25])()
        parts = [answers(loader.dataset) for loader in (loaders.train, *loaders.evaluation.values())]
        assert sorted(parts[0] + parts[1]) == sorted(f"a{n}<|im_end|>" for n in range(40)) and len(parts[1]) == 10
        loads = ["load train"] if changes or not rows_are_there else []
        assert Counted.calls == ["fingerprint train", *loads]
        assert len(messages) == 1 and "rows have no target token: 41; they are dropped" in messages[0]


def test_evaluation_is_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, [chat("q", f"a{n}") for n in range(5)])
    loader = sft(tmp_path, sources=[path], eval_sources=[path])().evaluation["eval"]
    assert [TOKENIZER.decode(b["labels"][0][b["labels"][0] != -100]) for b in loader] == [
        f"a{n}<|im_end|>" for n in range(5)
    ]


def test_positions_are_fused_in_a_share_of_the_rows(tmp_path: Path) -> None:
    rows = tiny.chats(200)
    loader = sft(tmp_path, rows, pack_samples=True, fuse_positions_prob=0.5)().train
    first = [len(batch["cu_seq_lens_q"]) <= 3 for batch in loader]
    assert 0 < sum(first) < len(first)
    loader.seek(1, 0)
    assert sum(len(batch["cu_seq_lens_q"]) <= 3 for batch in loader) == sum(first)


def test_repeating_fills_rows(tmp_path: Path) -> None:
    (batch,) = sft(tmp_path, [chat("q", "a")], pack_samples=True, repeat_to_pack_max_length=True)().train
    assert len(batch["cu_seq_lens_q"]) - 1 > 20


def test_drop_last_refuses_to_drop_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 rows make no batch; drop_last drops every global batch .*\(4 rows\)"):
        sft(tmp_path, [chat("q", "a")] * 2, micro=4, drop_last=True)()


def test_rows_that_are_tokens_already(tmp_path: Path) -> None:
    path = write(tmp_path, [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}])
    with pytest.raises(DataError, match="no known format"):
        sft(tmp_path, sources=[path])()
    sample = sft(tmp_path, sources=[{"name_or_path": path, "process": False}])().train.dataset[0]
    assert sample["labels"].tolist() == [-100, 2, 3]


def test_what_the_section_refuses() -> None:
    for section, message in [
        ({"sources": []}, "at least 1 item"),
        ({"sources": ["a.jsonl"], "always_max_length": True}, "pack_samples is false"),
        ({"sources": ["a.jsonl"], "train_eval_split": [0.5, 0.4]}, "add up to 1"),
        ({"sources": [{"name_or_path": "a.jsonl", "weight": 1}, "b.jsonl"]}, "all of them have a weight"),
        ({"sources": [{"name_or_path": "a.jsonl", "sample_ratio": 1, "sample_count": 2}]}, "give one of them"),
        ({"sources": [{"type": "jsonll", "name_or_path": "a"}]}, "did you mean 'jsonl'"),
        ({"sources": [{"name_or_path": "a.jsonl", "rolemapping": {}}]}, "rolemapping: unknown"),
    ]:
        with pytest.raises(ValueError, match=message):
            SFTDataConfig.model_validate(section)


def test_which_source_a_string_is() -> None:
    named = ["a/b.jsonl", "c.PARQUET", "HuggingFaceH4/ultrafeedback_binarized", "org/data", "ProjectGutenbergSFT"]
    types = [source.type for source in SFTDataConfig.model_validate({"sources": named}).sources]
    assert types == [
        "jsonl",
        "parquet",
        "HuggingFaceH4/ultrafeedback_binarized",
        "huggingface_instruct",
        "ProjectGutenbergSFT",
    ]


def test_several_processes_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from arctic_training.data.preparation import map_rows
    from arctic_training.data.sources import spool

    rows = tiny.chats(60)
    one = sft(tmp_path, rows, num_proc=1)().train.dataset
    monkeypatch.setattr(map_rows, "_MIN_ROWS_PER_PROCESS", 10)
    monkeypatch.setattr(spool, "IN_MEMORY", 10)
    (tmp_path / "other").mkdir()
    two = sft(tmp_path / "other", sources=[write(tmp_path, rows)], num_proc=2)().train.dataset
    assert len(one) == len(two) == 60
    assert all(len(entry.name) == 32 for entry in (tmp_path / "other" / "cache").iterdir())  # nothing else is left
    with pytest.raises(DataError, match=r"rows.jsonl:46: message 1 has the unknown role"):
        sft(tmp_path, [*rows[:45], {"messages": [{"role": "robot", "content": ""}]}, *rows[45:]], num_proc=2)()
    assert all(np.array_equal(one[n][name], two[n][name]) for n in range(60) for name in ("input_ids", "labels"))


def test_the_longest_sample_is_what_the_model_takes(tmp_path: Path) -> None:
    from arctic_training.model.huggingface_config import HFModelConfig

    model = tiny.save_model(tmp_path / "model", max_position_embeddings=96)
    factory = sft(tmp_path, [chat("q", "a")], max_length=None)
    factory.trainer.config.model = HFModelConfig(type="huggingface", name_or_path=str(model))
    assert factory.max_length == 96
    overridden = {"max_position_embeddings": 48}
    factory = sft(tmp_path, [chat("q", "a")], max_length=None)
    factory.trainer.config.model = HFModelConfig(
        type="huggingface", name_or_path=str(model), hf_config_kwargs=overridden
    )
    assert factory.max_length == 48
