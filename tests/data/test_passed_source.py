"""Rows of `datasets` that a program passes: their formats, their transforms, and the key of what is prepared."""

from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Value

from arctic_training.data.preparation.cache import rows_fingerprint
from arctic_training.data.preparation.load_rows import load_rows
from arctic_training.data.sources.huggingface import HFDataSource
from arctic_training.data.sources.passed import PassedSource, PassedTensorSource, has_tokens

ROWS = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(3)]


def source(rows: Any, kind: Any = PassedSource) -> Any:
    return kind(None, kind.config_type.model_validate({"type": kind.name, "rows": rows}))


def loud(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"prompt": batch["prompt"], "completion": [text.upper() for text in batch["completion"]]}


def test_rows_are_what_the_data_set_says_they_are() -> None:
    rows = Dataset.from_list(ROWS)
    forms = [
        rows,
        rows.with_format("torch"),
        rows.with_format("numpy", columns=["completion"]),
        rows.with_transform(loud),
        rows.with_transform(lambda batch: {"text": batch["prompt"]}),
        rows.shuffle(seed=3).select([2, 0]),
        rows.with_transform(loud).select([1]),
    ]
    for one in forms:
        assert load_rows(source(one), "train").to_list() == [one[n] for n in range(len(one))]


def test_a_saved_data_set_keeps_the_columns_of_its_format(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).with_format("torch", columns=["completion"]).save_to_disk(str(tmp_path / "saved"))
    section = {"type": "huggingface", "name_or_path": str(tmp_path / "saved")}
    saved = HFDataSource(None, HFDataSource.config_type.model_validate(section))
    assert load_rows(saved, "train").to_list() == [{"completion": row["completion"]} for row in ROWS]


def test_tensors_are_what_the_data_set_says_they_are() -> None:
    rows = Dataset.from_dict({"rows": [[1.0, 2.0], [3.0, 4.0]], "labels": [0, 1], "other": ["a", "b"]})
    chosen = rows.with_format("torch", columns=["rows", "labels"])
    doubled = rows.with_transform(
        lambda batch: {"rows": [2 * torch.tensor(row) for row in batch["rows"]], "labels": batch["labels"]}
    )
    for one, factor in ((chosen, 1), (doubled, 2)):
        columns = source(one, PassedTensorSource)("train")
        assert columns.keys() == {"rows", "labels"}
        assert columns["rows"].tolist() == [[factor * 1.0, factor * 2.0], [factor * 3.0, factor * 4.0]]


def test_a_transform_may_make_tokens() -> None:
    rows = Dataset.from_list(ROWS)
    assert has_tokens(rows.with_transform(lambda batch: {"input_ids": [[1, 2]] * len(batch["prompt"])}))
    assert not has_tokens(rows.with_transform(loud))


def test_the_names_of_labels_are_part_of_the_key() -> None:
    """The numbers of two data sets may be equal, and stand for other labels."""
    names = [f"a name of some length, which makes the description of the columns long: {n}" for n in range(40)]
    digests = set()
    for order in (names, names[::-1], names[1:] + names[:1]):
        features = Features({"text": Value("string"), "label": ClassLabel(names=order)})
        rows = [Dataset.from_dict({"text": ["a", "b"], "label": [0, 39]}, features=features) for _ in range(2)]
        digests |= {rows_fingerprint(one) for one in rows}
    assert len(digests) == 3
