"""Rows that hold tokens already, with the masks of tokenizers and of other trainers beside them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.errors.types import DataError
from tests import tiny
from tests.data.view import make


def samples(tokenizer: Any, rows: list[dict[str, Any]], cache: Path, *, process: bool = False) -> list[Any]:
    """The ids and labels of rows, in their order; without labels every token has one."""
    source = {"type": "passed", "rows": rows, "process": process}
    data = make(SFTDataFactory, tokenizer, {"sources": [source], "cache_dir": str(cache)}).load("train")
    read = [data[n] for n in range(len(data))]
    return [(one["input_ids"].tolist(), np.array(one.get("labels", one["input_ids"])).tolist()) for one in read]


def test_tokens_with_the_masks_of_a_tokenizer_are_what_their_chats_are(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.save_tokenizer(tmp_path / "tokenizer"))
    rows = tiny.chats(8)
    encoded = tokenizer.apply_chat_template(
        [row["messages"] for row in rows],
        return_dict=True,
        return_assistant_tokens_mask=True,
        padding="max_length",
        max_length=512,
    )
    padded = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    assert {"input_ids", "attention_mask", "assistant_masks"} <= set(padded[0])
    assert {len(row["input_ids"]) for row in padded} == {512}
    expected = samples(tokenizer, rows, tmp_path, process=True)
    assert samples(tokenizer, padded, tmp_path) == expected
    assert len({len(ids) for ids, _ in expected}) > 1


@pytest.mark.parametrize(
    ("row", "ids", "labels"),
    [
        ({"input_ids": [5, 6, 7, 0], "attention_mask": [1, 1, 1, 0]}, [5, 6, 7], [5, 6, 7]),
        ({"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "labels": [-100, -100, 6]}, [5, 6], [-100, 6]),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}, [5, 6, 7], [-100, 6, 7]),
        ({"input_ids": [5, 6, 7], "loss_mask": [False, False, True]}, [5, 6, 7], [-100, -100, 7]),
        (
            {"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 1, 0]},
            [5, 6, 7, 8],
            [-100, -100, 7, -100],
        ),
        ({"input_ids": [5, 6, 7], "labels": [5, -100, 7], "completion_mask": [0, 1, 1]}, [5, 6, 7], [-100, -100, 7]),
        ({"input_ids": [5, 6], "position_ids": [0, 1], "token_type_ids": [0, 0]}, [5, 6], [5, 6]),
        ({"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "position_ids": [1, 0, 1]}, [5, 6], [5, 6]),
    ],
)
def test_masks_say_what_is_read_and_what_is_learned(
    tmp_path: Path, row: dict[str, Any], ids: list[int], labels: list[int]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.save_tokenizer(tmp_path / "tokenizer"))
    assert samples(tokenizer, [row], tmp_path) == [(ids, labels)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [5.0, 6.5]}, "input_ids holds fractions"),
        ({"input_ids": [5, 6], "labels": [5, float("nan")]}, "must be a list of tokens"),
        ({"input_ids": [5, 6], "attention_mask": [1, 2]}, "attention_mask holds 2; expected 0 and 1"),
        ({"input_ids": [5, 6], "completion_mask": [1]}, "2 tokens have 1 completion_mask"),
        ({"input_ids": [5, 6, 7], "position_ids": [0, 1, 0]}, "position_ids do not count from 0"),
    ],
)
def test_what_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.save_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(DataError, match=rf"row 2: .*{message}"):
        samples(tokenizer, [{name: [0 if "position" in name else 1] for name in row}, row], tmp_path)
