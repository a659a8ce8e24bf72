"""Columns of the rows that are carried into batches: values, order and types, for every factory of texts; refusals."""

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training.builtin import BUILTIN
from arctic_training.data.factories.base import DataFactory
from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.data.factories.dpo import DPODataFactory
from arctic_training.data.factories.labeled_text import LabeledTextDataFactory
from arctic_training.data.factories.prompt import PromptDataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.errors.types import DataError, SampleError
from arctic_training.registry import lookup
from tests.data import templates
from tests.data.test_labeled_text import NamedConfig, NamedModel
from tests.data.view import make

TOKENIZER = templates.byte_level(templates.CHATML)
COLUMNS: dict[str, list[Any]] = {
    "score": [0.5, 1.5, 2.5, 3.5, 4.5],
    "number": [7, 8, 9, 10, 11],
    "origin": ["a", "b", "c", "d", "e"],
}
COLUMNS["is_new"] = [True, False, True, False, False]
COLUMNS["vector"] = [[n / 2, -n] for n in range(5)]
COLUMNS["counts"] = [[n, n + 1, n + 2] for n in range(5)]
COLUMNS["flags"] = [[n < 2] for n in range(5)]


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
    row = {"prompt": prompt, "completion": answer, "chosen": answer, "rejected": f"no{index}", "text": answer}
    return {**row, "label": index % 2, "anchor": prompt, "positive": answer, "source": prompt, "target": answer}


def build(kind: type[DataFactory[Any]], folder: Path, rows: list[dict[str, Any]], **section: Any) -> Any:
    view = {name: section.pop(name) for name in ("rank", "world", "micro") if name in section}
    section = {"sources": [write(folder, rows)], "cache_dir": str(folder / "cache"), **section}
    model = NamedConfig(type=NamedModel.name) if kind is LabeledTextDataFactory else SimpleNamespace(task="causal_lm")
    return make(kind, TOKENIZER, section, **{"micro": 2, **view}, model=model)


READ: dict[str, tuple[str, ...]] = {
    "sft": ("prompt", "completion"),
    "causal": ("text",),
    "dpo": ("prompt", "chosen", "rejected"),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired_preference": ("prompt", "completion", "label"),
    "prompt": ("prompt", "completion"),
    "pair": ("anchor", "positive"),
    "seq2seq": ("source", "target"),
    "labeled_text": ("text", "label"),
}
KINDS = [(name, pack) for name in READ for pack in (False, True)]
KINDS = [kind for kind in KINDS if kind not in [(name, True) for name in ("pair", "seq2seq", "labeled_text")]]
KINDS.remove(("causal", False))  # rows are cut from several documents


def plain(name: str) -> list[dict[str, Any]]:
    return [{column: texts(n)[column] for column in READ[name]} for n in range(5)]


def of(name: str, pack: bool) -> tuple[type[DataFactory[Any]], dict[str, Any]]:
    """Returns the factory ``name``, and its section."""
    kind: Any = lookup("data_factory", name)
    return kind, {"pack_samples": True} if pack else {}


def test_every_factory_of_texts_has_a_case() -> None:
    own = {name for name in BUILTIN["data_factory"] if issubclass(lookup("data_factory", name), SourcedDataFactory)}
    assert own == READ.keys()


@pytest.mark.parametrize(("name", "pack"), KINDS)
def test_every_factory_carries_the_columns_of_its_rows(
    name: str, pack: bool, tmp_path: Path, messages: list[str]
) -> None:
    kind, section = of(name, pack)
    loaders = build(kind, tmp_path, rows_with(*plain(name)), extra_columns=[*COLUMNS], **section)()
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    dtypes = {"score": torch.float32, "number": torch.int64, "is_new": torch.bool}
    dtypes |= {"vector": torch.float32, "counts": torch.int64, "flags": torch.bool}
    for batch in loaders.train:
        rows = int(batch["row_weights"].sum()) if kind.even_batches else None  # the others only fill the batch
        for column, values in columns.items():
            assert isinstance(batch[column], list if column == "origin" else torch.Tensor)
            values += (batch[column] if column == "origin" else batch[column].tolist())[:rows]
        assert {column: batch[column].dtype for column in dtypes} == dtypes
        sizes = {column: [*batch[column].shape[1:]] for column in dtypes}
        assert sizes == {"score": [], "number": [], "is_new": [], "vector": [2], "counts": [3], "flags": [1]}
    assert sorted(zip(*columns.values(), strict=True)) == sorted(zip(*COLUMNS.values(), strict=True))
    assert not [line for line in messages if "nothing reads" in line]


@pytest.mark.parametrize(("name", "pack"), KINDS)
def test_the_name_of_a_column_means_nothing(name: str, pack: bool, tmp_path: Path) -> None:
    """Whatever it is, the rest of a batch is what it is without it, in one that is filled up too."""
    kind, section = of(name, pack)
    more = {
        column: [1, 2, 3, 4, 5] for column in ("fills", "blank", "weak_labels", "other_input_ids", "candidate_ids_2")
    }
    rows = [
        {**row, **dict(zip(more, values, strict=True))}
        for row, values in zip(plain(name), zip(*more.values(), strict=True), strict=True)
    ]
    options = {**section, "rank": 1, "world": 2, "micro": 2 if pack else 3}
    without = list(build(kind, tmp_path, plain(name), **options)().train)
    for batch, other in zip(
        build(kind, tmp_path, rows, extra_columns=[*more], **options)().train, without, strict=True
    ):
        values = [batch.pop(column).tolist() for column in more]
        assert all(value == values[0] for value in values)
        assert values[0] and set(values[0]) <= {1, 2, 3, 4, 5}
        torch.testing.assert_close(_tensors(batch), _tensors(other), rtol=0, atol=0)


def _tensors(batch: Any) -> Any:
    """Returns a batch with every array in it as a tensor."""
    if isinstance(batch, dict):
        return {key: _tensors(value) for key, value in batch.items()}
    if isinstance(batch, list):
        return [_tensors(value) for value in batch]
    return torch.from_numpy(batch.copy()) if isinstance(batch, np.ndarray) else torch.as_tensor(batch)


def test_a_value_stands_where_its_document_does(tmp_path: Path) -> None:
    """In a packed row, and in one that is cut into slices."""
    rows = rows_with(*({"prompt": f"q{n}", "completion": f"a{n}" * (5 * n + 1)} for n in range(5)))
    columns = ["number", "counts"]
    for options in ({}, {"always_max_length": True, "max_length": 24}):
        loader = build(
            SFTDataFactory, tmp_path, rows, extra_columns=columns, pack_samples=True, div_length=1, **options
        )()
        for batch in loader.train:
            assert (batch["counts"] == batch["number"][:, None] - 7 + torch.arange(3)).all()
            ends = batch["cu_seq_lens_q"][1 : len(batch["number"]) + 1].tolist()
            for number, first, last in zip(batch["number"].tolist(), [0, *ends], ends, strict=False):
                document = TOKENIZER.decode(batch["input_ids"][0, first:last])
                assert {int(digit) for digit in document if digit.isdigit()} <= {number - 7}


def test_a_stream_and_tokens_carry_them(tmp_path: Path) -> None:
    plain = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(5)]
    source = {"name_or_path": write(tmp_path, rows_with(*plain)), "streaming": True}
    section = {"sources": [source], "stream_buffer": 3, "extra_columns": ["origin", "counts"]}
    loader = make(SFTDataFactory, TOKENIZER, section, train_iters=5)().train
    for batch in islice(loader, 10):
        text = TOKENIZER.decode(batch["input_ids"][0])
        assert text[1] == str("abcde".index(batch["origin"][0])) == str(batch["counts"][0, 0].item())
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
        (
            [{"a": [1, 2]}, {"a": [3]}],
            "a",
            r"rows.jsonl:2: a is \[3\], and \[1, 2\] in the first row; expected one type",
        ),
        (
            [{"a": [1]}, {"a": 2}],
            "a",
            r"rows.jsonl:2: a is 2, and \[1\] in the first row; expected one type and length",
        ),
        ([{"a": []}, {"a": [3]}], "a", r"rows.jsonl:1: a is \[\]; data.extra_columns carries a number, true or false"),
        (
            [{"a": [1, 2]}, {"a": [3, None]}],
            "a",
            r"rows.jsonl:2: a is \[3, None\]; data.extra_columns carries a number",
        ),
        ([{"a": [1]}, {"a": None}], "a", "rows.jsonl:2: a has no value; data.extra_columns"),
        ([{"a": [[1]]}, {"a": [[2]]}], "a", r"rows.jsonl:1: a is \[\[1\]\]; data.extra_columns carries"),
        ([{"a": ["x"]}, {"a": ["y"]}], "a", r"rows.jsonl:1: a is \['x'\]; data.extra_columns carries"),
        ([{"a": {"b": 1}}, {"a": {"b": 2}}], "a", "rows.jsonl:1: a is {'b': 1}; data.extra_columns carries"),
        ([{"a": 1}, {"a": 2**64}], "a", r"rows.jsonl:2: a is 18446744073709551616; data.extra_columns carries"),
        ([{"a": 1}, {"a": "x"}], "a", "rows.jsonl:2: a is 'x', and 1 in the first row; expected one type and length"),
        ([{"a": 1}, {"a": True}], "a", "rows.jsonl:2: a is True, and 1 in the first row; expected one type and length"),
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


def test_integers_among_floats_are_floats(tmp_path: Path) -> None:
    """JSON writes 1.0 as 1 where other programs write it; in a stream a buffer may hold integers alone."""
    rows = [{"prompt": "q", "completion": "a", "weight": weight, "pair": [weight, 1]} for weight in (1, 0.5, 1, 2, 1.5)]
    streamed = {"name_or_path": write(tmp_path, rows), "streaming": True}
    for section in ({}, {"sources": [streamed], "stream_buffer": 1}):
        kind = {"train_iters": 5, "micro": 5} if section else {"micro": 5}
        settings = {"sources": [write(tmp_path, rows)], "cache_dir": str(tmp_path / "cache"), **section}
        loader = make(SFTDataFactory, TOKENIZER, {**settings, "extra_columns": ["weight", "pair"]}, **kind)().train
        batch = next(iter(loader))
        loader.close()
        assert sorted(batch["weight"].tolist()) == [0.5, 1, 1, 1.5, 2]
        assert sorted(batch["pair"].tolist()) == [[0.5, 1], [1, 1], [1, 1], [1.5, 1], [2, 1]]


def test_names_that_batches_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels is in every batch already"):
        build(SFTDataFactory, tmp_path, [], extra_columns=["labels"])
    with pytest.raises(ValueError, match="extra_columns has a value for each document, and fuse_positions_prob makes"):
        build(SFTDataFactory, tmp_path, [], extra_columns=["score"], pack_samples=True, fuse_positions_prob=0.5)
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
    stated = {name: lookup("data_factory", name).counts for name in BUILTIN["data_factory"]}  # type: ignore[attr-defined]
    assert stated.items() >= {"sft": "labels", "causal": "labels", "dpo": "pairs", "prompt": "completions"}.items()
    assert stated.items() >= {"tensor": "rows", "gan": "rows"}.items()


@pytest.mark.parametrize("pack", [False, True])
def test_a_rank_that_has_a_part_of_the_sequences_has_all_values(pack: bool, tmp_path: Path) -> None:
    rows = rows_with(*({"prompt": f"q{n}", "completion": f"a{n}"} for n in range(5)))
    columns = ["number", "counts"]
    section = {"sources": [write(tmp_path, rows)], "extra_columns": columns, "pack_samples": pack}
    loader = make(SFTDataFactory, TOKENIZER, section, micro=5, sequence_parallel_size=2)().train
    (batch,) = loader
    assert sorted(batch["number"].tolist()) == COLUMNS["number"]
    assert sorted(batch["counts"].tolist()) == COLUMNS["counts"]
    assert batch["input_ids"].shape[0] == 1
    assert "shift_labels" in batch
