"""Columns of the rows that are carried into batches: values, order and types, for every factory of texts; refusals."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.data.factories.dpo import DPODataFactory
from arctic_training.data.factories.prompt import PromptDataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.errors.types import DataError, SampleError
from arctic_training.registry import lookup, names
from tests.data import templates
from tests.data.view import make

TOKENIZER = templates.byte_level(templates.CHATML)
COLUMNS = {"score": [0.5, 1.5, 2.5, 3.5, 4.5], "number": [7, 8, 9, 10, 11], "origin": ["a", "b", "c", "d", "e"]}
COLUMNS["is_new"] = [True, False, True, False, False]


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_with(*columns: dict[str, Any]) -> list[dict[str, Any]]:
    extra = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]
    return [{**row, **more} for row, more in zip(columns, extra, strict=True)]


def texts(index: int) -> dict[str, Any]:
    """A row that every factory of texts can read, apart from its columns."""
    prompt, answer = f"q{index}", f"a{index}" * (index + 1)
    return {"prompt": prompt, "completion": answer, "chosen": answer, "rejected": f"no{index}", "text": answer}


def build(kind: type[DataFactory[Any]], folder: Path, rows: list[dict[str, Any]], **section: Any) -> Any:
    section = {"sources": [write(folder, rows)], "cache_dir": str(folder / "cache"), **section}
    return make(kind, TOKENIZER, section, micro=2)


READ = {
    SFTDataFactory: ("prompt", "completion"),
    CausalDataFactory: ("text",),
    DPODataFactory: ("prompt", "chosen", "rejected"),
    PromptDataFactory: ("prompt", "completion"),
}


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_every_factory_carries_the_columns_of_its_rows(
    kind: type[DataFactory[Any]], pack: bool, tmp_path: Path, messages: list[str]
) -> None:
    if kind is CausalDataFactory and not pack:
        pytest.skip("rows are cut from several documents")
    plain = [{name: texts(n)[name] for name in READ[kind]} for n in range(5)]
    loaders = build(kind, tmp_path, rows_with(*plain), extra_columns=[*COLUMNS], pack_samples=pack)()
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for batch in loaders.train:
        for name, values in columns.items():
            assert isinstance(batch[name], list if name == "origin" else torch.Tensor)
            values += batch[name] if name == "origin" else batch[name].tolist()
        assert [batch[name].dtype for name in ("score", "number", "is_new")] == [torch.float32, torch.int64, torch.bool]
    assert sorted(zip(*columns.values(), strict=True)) == sorted(zip(*COLUMNS.values(), strict=True))
    assert not [line for line in messages if "nothing reads" in line]


def test_a_value_stands_where_its_document_does(tmp_path: Path) -> None:
    """In a packed row, and in one that is cut into slices."""
    rows = rows_with(*({"prompt": f"q{n}", "completion": f"a{n}" * (5 * n + 1)} for n in range(5)))
    for options in ({}, {"always_max_length": True, "max_length": 24}):
        loader = build(
            SFTDataFactory, tmp_path, rows, extra_columns=["number"], pack_samples=True, div_length=1, **options
        )()
        for batch in loader.train:
            ends = batch["cu_seq_lens_q"][1 : len(batch["number"]) + 1].tolist()
            for number, first, last in zip(batch["number"].tolist(), [0, *ends], ends, strict=False):
                document = TOKENIZER.decode(batch["input_ids"][0, first:last])
                assert {int(digit) for digit in document if digit.isdigit()} <= {number - 7}


def test_a_stream_and_tokens_carry_them(tmp_path: Path) -> None:
    plain = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(5)]
    source = {"name_or_path": write(tmp_path, rows_with(*plain)), "streaming": True}
    section = {"sources": [source], "stream_buffer": 3, "extra_columns": ["origin"]}
    loader = make(SFTDataFactory, TOKENIZER, section, train_iters=5)().train
    for batch in islice(loader, 10):
        text = TOKENIZER.decode(batch["input_ids"][0])
        assert text[1] == str("abcde".index(batch["origin"][0]))
    loader.close()
    tokens = [{"input_ids": [n + 5, n + 6], "number": n + 7} for n in range(5)]
    source = {"name_or_path": write(tmp_path, tokens), "process": False}
    batches = build(SFTDataFactory, tmp_path, tokens, sources=[source], extra_columns=["number"])().train
    columns = [(number, row[0]) for batch in batches for number, row in zip(*batch_lists(batch), strict=True)]
    assert sorted(columns) == [(n + 7, n + 5) for n in range(5)]


def batch_lists(batch: Any) -> tuple[list[int], list[list[int]]]:
    return batch["number"].tolist(), batch["input_ids"].tolist()


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        (
            [{"a": 1}, {"a": 2}],
            "scor",
            r"rows.jsonl: data.extra_columns: no row has scor; there are prompt, completion, a",
        ),
        ([{"a": [1, 2]}, {"a": [3]}], "a", "a holds lists, mappings or values of several types; expected a number"),
        ([{"a": 1}, {"a": "x"}], "a", "a holds lists, mappings or values of several types"),
        ([{"a": 1}, {"a": None}], "a", r"rows.jsonl:2: a has no value; data.extra_columns"),
        ([{"a": 1}, {}], "a", r"rows.jsonl:2: a has no value; data.extra_columns"),
    ],
)
def test_columns_that_cannot_be_carried_are_refused(
    rows: list[dict[str, Any]], name: str, message: str, tmp_path: Path
) -> None:
    rows = [{"prompt": "q", "completion": "a", **row} for row in rows]
    with pytest.raises(DataError, match=message):
        build(SFTDataFactory, tmp_path, rows, extra_columns=[name])()


def test_names_that_batches_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels is in every batch already"):
        build(SFTDataFactory, tmp_path, [], extra_columns=["labels"])
    with pytest.raises(ValueError, match="without pack_samples a row is cut from several documents"):
        build(CausalDataFactory, tmp_path, [], extra_columns=["score"])
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "completion_lengths": 1, "rejected_labels": 2}]
    with pytest.raises(DataError, match="rejected_labels is the name of what samples hold already; rename"):
        build(DPODataFactory, tmp_path, rows, extra_columns=["rejected_labels"])()
    loader = build(DPODataFactory, tmp_path, rows, extra_columns=["completion_lengths"])().train
    with pytest.raises(SampleError, match="batches have a key completion_lengths already"):
        next(iter(loader))


def test_the_samples_of_other_columns_are_others(tmp_path: Path) -> None:
    rows = rows_with(*({"prompt": f"q{n}", "completion": f"a{n}"} for n in range(5)))
    for columns in (["score"], ["number"], []):
        sample = build(SFTDataFactory, tmp_path, rows, extra_columns=columns)().train.dataset[0]
        assert sample.keys() == {"input_ids", "labels", *columns}


def test_a_row_that_only_fills_a_batch_has_values_too(tmp_path: Path) -> None:
    rows = rows_with(*({"prompt": f"q{n}", "completion": f"a{n}"} for n in range(5)))
    section = {"sources": [write(tmp_path, rows)], "extra_columns": ["score", "origin"]}
    for kind in (SFTDataFactory, PromptDataFactory):
        *_, last = make(kind, TOKENIZER, section, rank=1, world=2, micro=3)().train
        assert last["score"].shape == (2,)
        *_, last = make(kind, TOKENIZER, section, rank=2, world=3, micro=2)().train
        assert last["score"].shape == (1,)


def test_what_is_counted_is_stated() -> None:
    stated = {name: lookup("data_factory", name).counts for name in names("data_factory")}  # type: ignore[attr-defined]
    assert stated.items() >= {"sft": "labels", "causal": "labels", "dpo": "pairs", "prompt": "completions"}.items()
    assert stated.items() >= {"tensor": "rows", "gan": "rows"}.items()
    assert all(issubclass(kind, SourcedDataFactory) for kind in READ)


@pytest.mark.parametrize("pack", [False, True])
def test_a_rank_that_has_a_part_of_the_sequences_has_all_values(pack: bool, tmp_path: Path) -> None:
    rows = rows_with(*({"prompt": f"q{n}", "completion": f"a{n}"} for n in range(5)))
    section = {"sources": [write(tmp_path, rows)], "extra_columns": ["number"], "pack_samples": pack}
    loader = make(SFTDataFactory, TOKENIZER, section, micro=5, sequence_parallel_size=2)().train
    (batch,) = loader
    assert sorted(batch["number"].tolist()) == COLUMNS["number"]
    assert batch["input_ids"].shape[0] == 1
    assert "shift_labels" in batch
