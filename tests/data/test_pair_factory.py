"""Pairs of texts: columns, hard negatives, batches of one size, and ids that tell equal texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.data.factories.pair import PairDataFactory
from arctic_training.errors.types import DataError
from tests.data import templates
from tests.data.view import make

TOKENIZER = templates.byte_level(templates.CHATML)


def build(
    folder: Path, rows: list[dict[str, Any]], *, micro: int = 2, rank: int = 0, world: int = 1, **more: Any
) -> Any:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    section = {"sources": [str(path)], "cache_dir": str(folder / "cache"), **more}
    return make(PairDataFactory, TOKENIZER, section, micro=micro, rank=rank, world=world)


def texts(side: Any) -> list[str]:
    pairs = zip(side["input_ids"], side["attention_mask"], strict=True)
    return [TOKENIZER.decode(ids[mask.bool()]) for ids, mask in pairs]


def batch_of(factory: Any) -> Any:
    samples = factory.load("train")
    return factory.batch([samples[n] for n in range(len(samples))])


@pytest.mark.parametrize(
    ("row", "section", "candidates"),
    [
        ({"anchor": "a", "positive": "p"}, {}, ["p"]),
        ({"query": "a", "document": "p", "negative": "n"}, {}, ["p", "n"]),
        ({"question": "a", "answer": "p", "negative_2": "m", "negative_1": "n", "negative_10": "o"}, {}, [*"pnmo"]),
        ({"anchor": "a", "positive": "p", "negatives": ["n", "m", "o"]}, {"num_negatives": 2}, ["p", "n", "m"]),
        ({"anchor": "a", "positive": "p", "negatives": ["n", "m"]}, {"num_negatives": 0}, ["p"]),
        ({"anchor": "a", "positive": "p", "negatives": '["n", "m"]'}, {"num_negatives": 2}, ["p", "n", "m"]),
        ({"anchor": "a", "positive": "p", "negative": '["n'}, {}, ["p", '["n']),
        ({"anchor": "a", "positive": "p", "negative": '["n",' + "[" * 9999}, {}, ["p", '["n",' + "[" * 507]),
        ({"sentence1": "a", "sentence2": "p", "label": 1}, {}, ["p"]),
        (
            {"premise": "a", "hypothesis": "p", "label": 0, "score": 0.3},
            {"anchor_column": "premise", "positive_column": "hypothesis"},
            ["p"],
        ),
        ({"left": "a", "right": "p", "hard": "n"}, {"anchor_column": "left", "positive_column": "right"}, ["p"]),
        (
            {"left": "a", "right": "p", "hard": "n"},
            {"anchor_column": "left", "positive_column": "right", "negative_columns": ["hard"]},
            ["p", "n"],
        ),
    ],
)
def test_columns(row: dict[str, Any], section: dict[str, Any], candidates: list[str], tmp_path: Path) -> None:
    batch = batch_of(build(tmp_path, [row], **section))
    assert texts(batch["anchor"]) == ["a"]
    assert texts(batch["candidates"]) == candidates


@pytest.mark.parametrize(
    ("row", "section", "message"),
    [
        ({"a": "x", "b": "y"}, {}, "no pairs of texts are in the columns a, b; expected anchor and positive"),
        ({"a": "x", "b": "y"}, {"anchor_column": "c"}, "data.anchor_column: there is no column c; there are a, b"),
        ({"anchor": "a", "positive": " "}, {}, r"pairs.jsonl:1: positive is ' '; expected text"),
        ({"anchor": "a", "positive": "p", "negative": None}, {}, "negative is None; expected text"),
        (
            {"anchor": "a", "positive": "p", "negatives": ["n"]},
            {"num_negatives": 2},
            "negatives: 1 negatives; expected",
        ),
        *(
            ({"sentence1": "a", "sentence2": "p", "label": label}, {}, "pairs.jsonl:1: label is .*do not belong tog")
            for label in (0, 0.0, False, "0", "False", -1)
        ),
        ({"question": "a", "answer": "p", "is_duplicate": 0}, {}, "is_duplicate is 0: as other trainers write it"),
        ({"sentence1": "a", "sentence2": "p", "score": 4.5}, {}, "score says how similar sentence1 and sentence2 are"),
        ({"anchor": "a", "positive": "p"}, {"num_negatives": 1}, "data.num_negatives: no column of negatives is among"),
        ({"anchor": "a", "positive": "p"}, {"negative_columns": ["n"]}, "data.negative_columns: there is no column n"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    row: dict[str, Any], section: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        build(tmp_path, [row], **section).load("train")


def test_the_layout_of_a_batch(tmp_path: Path) -> None:
    rows = [{"anchor": f"a{n}", "positive": f"p{n}", "negative_1": f"n{n}", "negative_2": f"m{n}"} for n in range(3)]
    rows[2]["negative_1"] = "p0"
    batch = batch_of(build(tmp_path, rows, anchor_prompt="query: ", candidate_prompt="text: "))
    assert texts(batch["anchor"]) == ["query: a0", "query: a1", "query: a2"]
    expected = ["p0", "p1", "p2", "n0", "n1", "p0", "m0", "m1", "m2"]
    assert texts(batch["candidates"]) == [f"text: {text}" for text in expected]
    ids = batch["candidate_ids"].tolist()
    assert ids[0] == ids[5]
    assert len({*ids, *batch["anchor_ids"].tolist()}) == 11
    assert batch["anchor"]["input_ids"].shape[1] % 8 == 0


def test_texts_are_truncated_and_keep_their_last_token(tmp_path: Path, messages: list[str]) -> None:
    factory = build(tmp_path, [{"anchor": "abcdefgh", "positive": "p"}], max_length=4)
    assert texts(batch_of(factory)["anchor"]) == ["abcd"]
    assert any("texts of max_length tokens or more, which are truncated" in line for line in messages)


@pytest.mark.parametrize(("micro", "world"), [(4, 1), (3, 2), (2, 4)])
def test_all_batches_have_as_many_rows_and_each_row_counts_once(micro: int, world: int, tmp_path: Path) -> None:
    rows = [{"anchor": f"a{n}", "positive": f"p{n}", "negative": f"n{n}"} for n in range(9)]
    counted: list[str] = []
    for rank in range(world):
        for batch in build(tmp_path, rows, micro=micro, rank=rank, world=world)().train:
            assert len(batch["row_weights"]) == len(texts(batch["anchor"])) == micro
            assert len(texts(batch["candidates"])) == len(batch["candidate_ids"]) == 2 * micro
            weighted = zip(texts(batch["anchor"]), batch["row_weights"].tolist(), strict=True)
            counted += [text for text, weight in weighted if weight]
    assert sorted(counted) == [f"a{n}" for n in range(9)]
    assert torch.equal(batch["row_weights"], batch["row_weights"].sort(descending=True)[0])
