"""Row transforms: what they make of rows, of which the cache knows, and which row one fails on."""

import json
from pathlib import Path
from typing import Any

import pytest

from arctic_training import RowTransform
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.config.sections.component import parse_component
from arctic_training.data.preparation.load_rows import load_rows
from arctic_training.data.transforms.base import create_transforms
from arctic_training.errors.types import DataError
from arctic_training.registry import lookup


class Doubled(RowTransform[ComponentConfig]):
    """Doubles the answer; of the user's own code."""

    name = "doubled_of_the_tests"

    def __call__(self, row: Any) -> Any:
        return {"problem": row["problem"], "answer": str(2 * int(row["answer"]))}


def source(path: Path, *transforms: Any, **keys: Any) -> Any:
    section = {"type": "jsonl", "name_or_path": str(path), "transforms": list(transforms), **keys}
    config = parse_component("data_source", section)
    return lookup("data_source", "jsonl")(None, config)  # type: ignore[call-arg]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def changed(transform: dict[str, Any], **row: str) -> dict[str, Any]:
    (one,) = create_transforms([parse_component("row_transform", transform)])
    return dict(one(row))


@pytest.mark.parametrize(
    ("transform", "answer", "expected"),
    [
        ({"type": "reverse"}, "3 8 7", "7 8 3"),
        ({"type": "reverse", "separator": ", "}, "3, 8 , 7", "7, 8, 3"),
        ({"type": "reverse"}, "3", "3"),
        ({"type": "last_element"}, "3 8  7 ", "7"),
        ({"type": "last_element", "separator": "|"}, "x0 | x1 + 1", "x1 + 1"),
        ({"type": "last_element"}, "", ""),
    ],
)
def test_lists(transform: dict[str, Any], answer: str, expected: str) -> None:
    assert changed(transform, problem="p", answer=answer) == {"problem": "p", "answer": expected}


def test_polynomials_are_expanded() -> None:
    expand = {"type": "expand_polynomials", "variables": ["x0", "x1"]}
    row = changed(expand, problem="3*x0^2*x1 - 1/2 | x1", answer="(x0 + 1)^2")
    assert row["problem"] == "C3 E2 E1 + C-1/2 E0 E0 | C1 E0 E1"
    assert row["answer"] == "C1 E2 E0 + C2 E1 E0 + C1 E0 E0"
    assert changed({**expand, "field": "GF(7)"}, problem="-x0", answer="8")["problem"] == "C6 E1 E0"
    lex = {**expand, "order": "lex", "columns": ["answer"]}
    assert changed(lex, problem="?", answer="x1^3 + x0") == {"problem": "?", "answer": "C1 E1 E0 + C1 E0 E3"}


def test_several_are_applied_in_their_order_to_rows_as_they_are(tmp_path: Path) -> None:
    rows = [{"problem": "a b", "answer": "1 2", "more": [{"k": 1}, {"j": None}]}, {"problem": "c", "answer": "4 3"}]
    file = write(tmp_path / "rows.jsonl", *rows)
    kept = list(load_rows(source(file, "reverse", {"type": "reverse", "columns": ["problem"]}), "train"))
    assert [row["problem"] for row in kept] == ["b a", "c"] and kept[0]["more"] == [{"k": 1}, {"j": None}]
    assert [row["answer"] for row in load_rows(source(file, "last_element", "doubled_of_the_tests"), "train")] == [
        "4",
        "6",
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stream_and_a_data_set_give_the_same_rows(streaming: bool, tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl", *({"problem": "p", "answer": f"0 {n}", "more": {"n": n}} for n in range(2500))
    )
    one = source(file, "last_element", "doubled_of_the_tests", streaming=streaming)
    rows = list(one("train"))
    assert [row["answer"] for row in rows] == [str(2 * n) for n in range(2500)]
    assert {frozenset(row) for row in rows} == {frozenset(["problem", "answer"])}


@pytest.mark.parametrize(
    ("row", "transform", "message"),
    [
        (
            {"problem": "p", "answer": "x0 +"},
            {"type": "expand_polynomials", "variables": ["x0"], "columns": ["answer"]},
            "the transform expand_polynomials: answer: 'x0 +' is no polynomial over QQ",
        ),
        (
            {"problem": "p", "answer": "x0"},
            {"type": "expand_polynomials", "variables": ["x1"], "columns": ["answer"]},
            "the transform expand_polynomials: answer: 'x0' is no polynomial over QQ: x0 is no part of one",
        ),
        ({"problem": "p", "solution": "1"}, "reverse", "the column answer is missing; there are problem, solution"),
        ({"problem": "p", "answer": 3}, "reverse", "the transform reverse: the column answer is 3; expected text"),
        ({"problem": "p", "answer": "one"}, "doubled_of_the_tests", "the transform doubled_of_the_tests: ValueError"),
    ],
)
def test_a_row_that_cannot_be_changed_is_refused_with_its_line(
    row: dict[str, Any], transform: Any, message: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(DataError) as caught:
        load_rows(source(file, transform), "train")
    assert str(caught.value).startswith(f"{file}:1: ") and message in str(caught.value)


def test_a_transform_is_part_of_the_key_of_the_cache(tmp_path: Path, tiny_model: Path) -> None:
    from arctic_training import get_config
    from arctic_training.trainer.assembly import prepared_data

    file = write(tmp_path / "rows.jsonl", *({"problem": f"p {n}", "answer": f"{n} 4 5"} for n in range(8)))
    answers: list[str] = []
    for transforms in ([], ["reverse"], ["last_element"], [{"type": "reverse", "separator": "4"}]):
        recipe = {
            "type": "sft",
            "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
            "data": {
                "sources": [{"name_or_path": str(file), "transforms": transforms}],
                "cache_dir": str(tmp_path / "c"),
            },
        }
        recipe["data"]["max_length"] = 100  # type: ignore[index]
        with prepared_data(lookup("trainer", "sft"), get_config(recipe)) as (factory, loaders):
            sample = loaders.train.dataset[1]
            answers.append(factory.tokenizer.decode(sample["input_ids"][sample["labels"] >= 0]))
    for answer, expected in zip(answers, ["1 4 5", "5 4 1", "5", "541"], strict=True):
        assert answer.removesuffix("\n").removesuffix("<|im_end|>") == expected
    assert len(list((tmp_path / "c").iterdir())) == 4


def test_tensors_have_no_transforms(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "rows.npy", np.zeros((2, 2)))
    section = {"type": "tensor_file", "name_or_path": str(tmp_path / "rows.npy"), "transforms": ["reverse"]}
    one: Any = lookup("data_source", "tensor_file")(None, parse_component("data_source", section))  # type: ignore[call-arg]
    with pytest.raises(DataError, match="transforms: they change rows of text, and these are Tensor; remove them"):
        one("train")
