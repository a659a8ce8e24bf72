"""DPO data: labels, truncation, and the keys of a batch."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import arctic_training.data.sources.files  # noqa: F401  the source of files
from arctic_training.data.factories.dpo import DPODataConfig, DPODataFactory, Truncation
from arctic_training.errors.types import DataError


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


ROWS = [
    {"prompt": "add one", "chosen": chat("add one", "two"), "rejected": chat("add one", "nine ten")},
    {
        "prompt": "x",
        "chosen": chat("one", "yes", "say no", "no"),
        "rejected": chat("one", "yes", "say no", "yes please"),
    },
    {"prompt": "x", "chosen": chat("what is the sum", "ten"), "rejected": chat("what is the sum", "of")},
]


def factory(tiny_model: Path, rows: list[Any], folder: Path, **section: Any) -> Any:
    from transformers import AutoTokenizer

    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"type": "dpo", "sources": [str(path)], "max_length": 64, "cache_dir": str(folder / "cache"), **section}
    options = {
        "micro_batch_size": 2,
        "sequence_parallel_size": 1,
        "tokenizer": SimpleNamespace(model_dump=lambda **_: {}),
    }
    trainer = SimpleNamespace(
        config=SimpleNamespace(**options),
        tokenizer=AutoTokenizer.from_pretrained(tiny_model),
        data_rank=0,
        data_world=1,
    )
    return DPODataFactory(trainer, DPODataConfig.model_validate(section))  # type: ignore[arg-type]


def decoded(maker: Any, sample: Any, kind: str = "") -> tuple[str, str]:
    ids, labels = np.asarray(sample[f"{kind}input_ids"]), np.asarray(sample[f"{kind}labels"])
    assert (labels[labels != -100] == ids[labels != -100]).all()
    decode = maker.trainer.tokenizer.decode
    return decode(ids[labels == -100]), decode(ids[labels != -100])


def test_targets_are_the_completions_that_differ(tiny_model: Path, tmp_path: Path) -> None:
    maker = factory(tiny_model, ROWS, tmp_path)
    samples = maker.load("train")
    assert [decoded(maker, s)[1] for s in samples] == ["two<|im_end|>", "no<|im_end|>", "ten<|im_end|>"]
    rejected = [decoded(maker, s, "rejected_")[1] for s in samples]
    assert rejected == ["nine ten<|im_end|>", "yes please<|im_end|>", "of<|im_end|>"]
    prompts = [decoded(maker, s)[0] for s in samples]
    assert prompts == [decoded(maker, s, "rejected_")[0] for s in samples]
    assert prompts[1].endswith("say no<|im_end|>\n<|im_start|>assistant\n")
    assert "yes<|im_end|>" in prompts[1]


def test_both_layouts_hold_the_same(tiny_model: Path, tmp_path: Path) -> None:
    packed, padded = (factory(tiny_model, ROWS, tmp_path, pack_samples=flag, div_length=8) for flag in (True, False))
    samples = list(packed.load("train"))
    row, rows = packed.collate(samples), padded.collate(samples)
    for name in ("completion_lengths", "pair_weights"):
        assert torch.equal(row[name], rows[name])
    assert row["chosen_tokens"] == rows["chosen_tokens"] == int(rows["completion_lengths"][:3].sum())
    assert rows["input_ids"].shape[0] == 6
    assert row["input_ids"].shape[0] == 1
    assert row["input_ids"].shape[1] % 8 == 0
    # in the order in which the loss of a target comes: chosen completions, then rejected ones
    targets = [batch["labels"][:, 1:][batch["labels"][:, 1:] != -100] for batch in (row, rows)]
    assert torch.equal(*targets)
    decode = packed.trainer.tokenizer.decode
    completions = [decode(part) for part in targets[0].split(row["completion_lengths"].tolist())]
    chosen, rejected = ["two", "no", "ten"], ["nine ten", "yes please", "of"]
    assert completions == [f"{text}<|im_end|>" for text in chosen + rejected]
    assert len(row["cu_seq_lens_q"]) in (7, 8)  # six documents, and perhaps the padding


def test_a_blank_counts_for_nothing(tiny_model: Path, tmp_path: Path) -> None:
    maker = factory(tiny_model, ROWS, tmp_path)
    sample = maker.load("train")[0]
    batch = maker.collate([maker.make_padding_sample(sample)])
    assert batch["pair_weights"].tolist() == [0]
    assert batch["chosen_tokens"] == 0
    assert (batch["labels"] == -100).all()


def test_texts(tiny_model: Path, tmp_path: Path) -> None:
    maker = factory(tiny_model, [{"prompt": "one and", "chosen": " two", "rejected": " three"}], tmp_path)
    (sample,) = maker.load("train")
    assert decoded(maker, sample) == ("one and", " two<|im_end|>")
    assert decoded(maker, sample, "rejected_") == ("one and", " three<|im_end|>")


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_long_prompts_are_cut(tiny_model: Path, tmp_path: Path, mode: str) -> None:
    rows = [{"prompt": "one two three four five six", "chosen": " yes", "rejected": " no"}]
    maker = factory(tiny_model, rows, tmp_path, max_prompt_length=2, dpo_prompt_truncation_mode=mode)
    (sample,) = maker.load("train")
    prompt, completion = decoded(maker, sample)
    assert completion == " yes<|im_end|>"
    tokenizer = maker.trainer.tokenizer
    ids = tokenizer("one two three four five six")["input_ids"]
    assert prompt == tokenizer.decode(ids[:2] if mode == "keep_start" else ids[-2:])


@given(st.data(), st.integers(2, 12), st.integers(1, 12), st.sampled_from(["keep_start", "keep_end"]))
def test_cuts(data: st.DataObject, most: int, prompt: int, mode: str) -> None:
    start, length, after = (data.draw(st.integers(low, 12)) for low in (0, 1, 0))
    ids = np.arange(1, start + length + after + 1, dtype=np.int32)
    labels = np.where((ids > start) & (ids <= start + length), ids, -100)
    cut, targets = Truncation(most, prompt, mode)(ids, labels)
    kept = min(start, prompt)
    prompt_ids = ids[:start][:kept] if mode == "keep_start" else ids[start - kept : start]
    assert cut.tolist() == [*prompt_ids, *ids[start : start + length]][:most]
    assert (targets[:kept] == -100).all()
    assert (targets[kept:] == cut[kept:]).all()


def test_pairs_that_decide_nothing_are_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    same = {"prompt": "x", "chosen": chat("one", "two"), "rejected": chat("one", "two")}
    maker = factory(tiny_model, [*ROWS, same], tmp_path, max_share_without_targets=0.5)
    assert len(maker.load("train")) == 3
    with pytest.raises(DataError, match="1 of 4 rows prefer nothing, chosen and rejected being the same, or empty: 4"):
        factory(tiny_model, [*ROWS, same], tmp_path).load("train")


def test_pairs_that_the_cut_decides_nothing_of_are_left_out_for_their_own_reason(
    tiny_model: Path, tmp_path: Path
) -> None:
    long, same = "one two three " * 8, " yes" * 8
    completions = {"chosen": f"{same} no", "rejected": f"{same} yes"}
    rows = [
        {"prompt": "one", "chosen": " yes", "rejected": " no"},
        {"prompt": long, "chosen": " yes", "rejected": " no"},
        {"prompt": "one", **completions},
        {"prompt": "one", "chosen": " yes", "rejected": ""},
        {"prompt": long, **completions},
    ]
    section = {"max_length": 8, "max_share_without_targets": 0.9}
    assert len(factory(tiny_model, rows, tmp_path, **section).load("train")) == 1
    reasons = [
        "2 of 5 rows have a prompt that leaves no room for a completion in max_length = 8: 2, 5",
        "1 of 5 rows have completions that are the same once truncated to max_length = 8: 3",
        "1 of 5 rows prefer nothing, chosen and rejected being the same, or empty: 4",
    ]
    with pytest.raises(DataError, match="pairs.jsonl: " + "; ".join(reasons) + "; more than data.max_share"):
        factory(tiny_model, rows, tmp_path, **section | {"max_share_without_targets": 0.5}).load("train")
    assert len(factory(tiny_model, rows, tmp_path, max_prompt_length=4, **section).load("train")) == 2


def test_rows_that_cannot_be_read_are_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: chosen is empty"):
        factory(tiny_model, [ROWS[0], {**ROWS[1], "chosen": None}], tmp_path).load("train")
    with pytest.raises(DataError, match="no preferences are in the columns messages"):
        factory(tiny_model, [{"messages": chat("a", "b")}], tmp_path).load("train")


def test_settings_that_change_samples_are_in_the_key(tiny_model: Path, tmp_path: Path) -> None:
    loaded = [factory(tiny_model, ROWS, tmp_path, **keys).load("train") for keys in ({}, {"max_prompt_length": 1})]
    assert len(loaded[0][0]["input_ids"]) > len(loaded[1][0]["input_ids"])
