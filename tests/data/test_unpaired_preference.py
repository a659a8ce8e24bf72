"""Rated completions: formats and labels, pairs that are split, batches, and completions of other prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arctic_training.data.batching.fingerprint import of_data
from arctic_training.data.factories.unpaired_preference import UnpairedPreferenceDataFactory
from arctic_training.data.formats import unpaired
from arctic_training.errors.types import DataError
from tests.data import templates
from tests.data.view import make

TOKENIZER = templates.byte_level(templates.CHATML)


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def build(folder: Path, rows: list[dict[str, Any]], *, micro: int = 2, **section: Any) -> Any:
    path = folder / "rated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    section = {"sources": [str(path)], "cache_dir": str(folder / "cache"), **section}
    return make(UnpairedPreferenceDataFactory, TOKENIZER, section, micro=micro)


def parts(sample: Any, prefix: str = "") -> tuple[str, str]:
    """The text without labels, and that with labels."""
    ids, labels = sample[f"{prefix}input_ids"], sample[f"{prefix}labels"]
    assert (labels[labels != -100] == ids[labels != -100]).all()
    return TOKENIZER.decode(ids[labels == -100]), TOKENIZER.decode(ids[labels != -100])


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c<|im_end|>"),
        ({"prompt": chat("p"), "completion": chat("", "c")[1:]}, "user\np<|im_end|>", "c<|im_end|>"),
        ({"messages": chat("p", "x", "q", "c")}, "x<|im_end|>", "c<|im_end|>"),
        (
            {"prompt": chat("p"), "completion": chat("", "x", "q", "c")[1:]},
            "user\nq<|im_end|>",
            "x<|im_end|>c<|im_end|>",
        ),
        ({"question": "p", "answer": "c"}, "user\np<|im_end|>", "c<|im_end|>"),
    ],
)
@pytest.mark.parametrize(
    ("label", "is_liked"), [(True, True), (False, False), (1, True), (0, False), ("true", True), ("False", False)]
)
def test_formats(row: dict[str, Any], prompt: str, completion: str, label: Any, is_liked: bool, tmp_path: Path) -> None:
    sample = build(tmp_path, [{**row, "label": label}]).load("train")[0]
    prompt_text, labelled = parts(sample)
    assert prompt in prompt_text
    assert (labelled, sample["label"]) == (completion, is_liked)


def test_a_pair_becomes_two_and_sources_are_mixed(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{n}", "chosen": f"good{n}", "rejected": f"bad{n}", "origin": f"o{n}"} for n in range(3)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    single = [{"prompt": "p", "completion": "c", "kto_tag": "1", "origin": "alone"}]
    factory = build(tmp_path, single, extra_columns=["origin"])
    factory.config.sources.append(factory.config.sources[0].model_copy(update={"name_or_path": str(pairs)}))
    samples = factory.load("train")
    read = [(*parts(samples[n]), samples[n]["label"], samples[n]["origin"]) for n in range(len(samples))]
    expected = [("p", "c<|im_end|>", True, "alone")]
    for n in range(3):
        expected += [(f"p{n}", f"{word}{n}<|im_end|>", word == "good", f"o{n}") for word in ("good", "bad")]
    assert read == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "p", "completion": "c"},
            "no rated completions are in the columns prompt, completion; expected label",
        ),
        ({"prompt": "p", "completion": "c", "label": None}, r"rated.jsonl:1: label is None; expected true or false"),
        ({"prompt": "p", "completion": "c", "label": 3}, "label is 3; expected true or false"),
        ({"label": True, "colour": "red"}, "no known format has the columns"),
        (
            {"messages": [*chat("p", "c")[:1], {**chat("p", "c")[1], "weight": 0}], "label": True},
            "message 2 has the weight",
        ),
        ({"prompt": "p", "completion": " ", "label": True}, "1 of 1 rows have an empty completion: 1; nothing is left"),
    ],
)
def test_rows_that_cannot_be_used_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        build(tmp_path, [row]).load("train")


def test_rows_of_pairs_that_are_dropped_are_named_by_their_row(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": f"c{n}", "rejected": "" if n == 2 else "r"} for n in range(4)]
    with pytest.raises(DataError, match=r"1 of 8 rows have an empty completion: 3; more than"):
        build(tmp_path, rows).load("train")


def test_a_prompt_that_is_too_long_is_truncated(tmp_path: Path) -> None:
    row = {"prompt": "abcdefgh", "completion": "xyz", "label": True}
    for mode, kept in (("keep_start", "abc"), ("keep_end", "fgh")):
        samples = build(tmp_path, [row], max_prompt_length=3, prompt_truncation_mode=mode).load("train")
        assert parts(samples[0]) == (kept, "xyz<|im_end|>")
    with pytest.raises(DataError, match="have a prompt that leaves no room for a completion in max_length = 8"):
        build(tmp_path, [row], max_length=8).load("train")


def rated(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{n}", "completion": f"c{n}" * (n + 1), "label": n % 3 == 0} for n in range(count)]


def test_every_prompt_gets_the_completion_of_another_and_each_is_used_once(tmp_path: Path) -> None:
    samples = build(tmp_path, rated(9)).load("train")
    again, other = build(tmp_path, rated(9)).load("train"), build(tmp_path, rated(9), seed=5).load("train")
    matched = [parts(samples[n]) for n in range(9)]
    mismatched = [parts(samples[n], "mismatched_") for n in range(9)]
    assert [prompt for prompt, _ in mismatched] == [prompt for prompt, _ in matched]
    assert all(one[1] != two[1] for one, two in zip(matched, mismatched, strict=True))
    assert sorted(text for _, text in mismatched) == sorted(text for _, text in matched)
    assert [parts(again[n], "mismatched_") for n in range(9)] == mismatched
    assert [parts(other[n], "mismatched_") for n in range(9)] != mismatched
    alone = build(tmp_path, rated(1)).load("train")[0]
    assert (alone["mismatched_labels"] == -100).all()
    short = build(tmp_path, rated(9), max_length=10).load("train")
    assert max(len(short[n]["mismatched_input_ids"]) for n in range(9)) == 10


def test_both_layouts_hold_the_same(tmp_path: Path) -> None:
    packed, padded = (build(tmp_path, rated(5), pack_samples=flag) for flag in (True, False))
    samples = [packed.load("train")[n] for n in range(5)]
    filling = packed.make_padding_sample(samples[1])
    row, rows = (factory.batch([*samples, filling]) for factory in (packed, padded))
    for one, other in ((row, rows), (row["mismatched"], rows["mismatched"])):
        assert torch.equal(one["completion_lengths"], other["completion_lengths"])
        assert one["completion_lengths"][-1] == 0
        labels = [batch["labels"][:, 1:][batch["labels"][:, 1:] != -100] for batch in (one, other)]
        assert torch.equal(*labels)
        assert one["input_ids"].shape[0] == 1
        assert other["input_ids"].shape[0] == 6
    assert row["row_weights"].tolist() == [1, 1, 1, 1, 1, 0]
    assert row["label"].tolist() == [True, False, False, True, False, False]
    lengths = [np.count_nonzero(sample["labels"] != -100) for sample in samples]
    assert row["completion_lengths"].tolist() == [*lengths, 0]


def test_other_rows_have_another_fingerprint(tmp_path: Path) -> None:
    fingerprints = [of_data(build(tmp_path, rows)().train) for rows in (rated(5), rated(5), rated(6)[1:])]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_label_is_read_as_it_is() -> None:
    with pytest.raises(DataError, match="label is 'liked'"):
        unpaired.read_label("liked", "label")
