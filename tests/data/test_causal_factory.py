"""Causal data: every token is in a row, and has a label unless it is the first."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.errors.types import DataError
from tests.data import templates
from tests.data.view import make

TOKENIZER = templates.byte_level(eos="</s>")
TEXTS = ["yes no the assistant", "x", "said hello to you " * 8, "and think"] * 3


def causal(folder: Path, **section: Any) -> Any:
    path = folder / "texts.txt"
    path.write_text("\n".join(text.strip() for text in TEXTS))
    section = {"sources": [str(path)], "cache_dir": str(folder / "cache"), **section}
    return make(CausalDataFactory, TOKENIZER, section, micro=section.pop("micro", 1))


def documents() -> list[str]:
    return sorted(text.strip() + "</s>" for text in TEXTS)


def test_documents_one_behind_the_other(tmp_path: Path) -> None:
    loader = causal(tmp_path, max_length=16, micro=2)().train
    rows = loader.dataset
    assert all(len(rows[n]["input_ids"]) == 16 for n in range(len(rows) - 1))
    decoded = TOKENIZER.decode([token for n in range(len(rows)) for token in rows[n]["input_ids"].tolist()])
    assert sorted(text + "</s>" for text in decoded.split("</s>")[:-1]) == documents()
    targets = sum(int((batch["labels"] != -100).sum()) for batch in loader)
    assert targets == sum(len(rows[n]["input_ids"]) - 1 for n in range(len(rows)))


def test_packed_documents_do_not_see_each_other(tmp_path: Path) -> None:
    outputs = []
    loader = causal(tmp_path, max_length=64, pack_samples=True)().train
    for batch in loader:
        bounds = batch["cu_seq_lens_q"].tolist()
        for start, end in pairwise(bounds):
            text = TOKENIZER.decode(batch["input_ids"][0, start:end])
            if not text.startswith("<|pad|>"):
                outputs.append(text)
                labels = batch["labels"][0, start:end]
                assert labels[0] == -100
                assert labels[1:].tolist() == batch["input_ids"][0, start + 1 : end].tolist()
    assert sorted(outputs) == documents()


def test_long_documents_are_packed_in_pieces(tmp_path: Path) -> None:
    loader = causal(tmp_path, max_length=8, pack_samples=True)().train
    batches = list(loader)
    assert max(batch["max_length_q"] for batch in batches) <= 256
    tokens = sum(len(loader.dataset[n]["input_ids"]) for n in range(len(loader.dataset)))
    assert tokens == sum(len(TOKENIZER(text.strip())["input_ids"]) + 1 for text in TEXTS)


def test_whole_rows_only(tmp_path: Path) -> None:
    rows = causal(tmp_path, max_length=16, drop_last=True)().train.dataset
    assert {len(rows[n]["input_ids"]) for n in range(len(rows))} == {16}


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"content": "a", "n": 1}')
    with pytest.raises(DataError, match="reads the column text; there are content, n"):
        causal(tmp_path, sources=[str(path)])()
    path.write_text('{"text": "a"}\n{"text": null}')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: text is None"):
        causal(tmp_path, sources=[str(path)])()
