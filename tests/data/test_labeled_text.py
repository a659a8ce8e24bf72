"""Labelled texts: which label each text or token gets, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arctic_training.config.sections.model import ModelConfig
from arctic_training.data.factories.labeled_text import LabeledTextDataFactory
from arctic_training.data.formats.labels import LabelReader
from arctic_training.errors.types import DataError
from arctic_training.model.factory import ModelFactory
from tests.data import templates
from tests.data.view import make

TOKENIZER = templates.byte_level(eos="</s>")
NAMES = ["no", "yes"]


class NamedConfig(ModelConfig):
    task: str = "sequence_classification"
    names: list[str] = NAMES


class NamedModel(ModelFactory[Any]):
    """A model that has nothing but the names of its labels."""

    name = "named_labels_for_tests"
    config_type = NamedConfig

    def create_config(self) -> Any:
        return SimpleNamespace(id2label=dict(enumerate(self.config.names)))

    def create_model(self, config: Any) -> Any:
        raise NotImplementedError


def labeled(folder: Path, rows: list[dict[str, Any]], *, task: str = "sequence_classification", **section: Any) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = section.pop("names", NAMES)
    tokenizer, micro = section.pop("tokenizer", TOKENIZER), section.pop("micro", len(rows))
    section = {"sources": [str(path)], "cache_dir": str(folder / "cache"), **section}
    model = NamedConfig(type=NamedModel.name, task=task, names=names)
    return make(LabeledTextDataFactory, tokenizer, section, micro=micro, model=model)


def first_batch(factory: Any) -> Any:
    return next(iter(factory.create_loader(factory.load("train"), train=False)))


def test_texts_with_a_label(tmp_path: Path) -> None:
    rows = [{"text": "yes no", "label": "yes"}, {"text": "the assistant said", "label": 0}]
    batch = first_batch(labeled(tmp_path, rows))
    assert batch["labels"].tolist() == [1, 0]
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        assert TOKENIZER.decode(ids[mask.bool()]) == row["text"]
        assert set(ids[~mask.bool()].tolist()) <= {TOKENIZER.pad_token_id}
    assert batch["input_ids"].shape[1] % 8 == 0


def test_other_columns_and_rows_without_a_label(tmp_path: Path) -> None:
    rows = [{"body": "yes", "kind": "yes", "label": "?"}] * 30 + [{"body": "no", "kind": None, "label": "?"}]
    factory = labeled(tmp_path, rows, text_column="body", label_column="kind")
    assert len(factory.load("train")) == 30
    with pytest.raises(DataError, match=r"data\.text_column: no column text; there are body, kind, label"):
        labeled(tmp_path, rows).load("train")


def test_several_labels(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": []}, {"text": "b", "label": ["yes", "no"]}, {"text": "c", "label": ["yes"]}]
    batch = first_batch(labeled(tmp_path, rows, multi_label=True))
    assert batch["labels"].tolist() == [[0, 0], [1, 1], [0, 1]]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the labels are 'yes'; expected a list, since data\.multi_l"):
        labeled(tmp_path, [{"text": "a", "label": "yes"}], multi_label=True).load("train")


def test_the_first_token_of_a_word_has_its_label(tmp_path: Path) -> None:
    words = ["unbelievable", "yes", "öffnen"]
    factory = labeled(tmp_path, [{"tokens": words, "tags": ["no", 1, -100]}], task="token_classification")
    batch = first_batch(factory)
    assert batch["labels"].shape == batch["input_ids"].shape
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    tagged = [n for n, label in enumerate(labels) if label != -100]
    assert [labels[n] for n in tagged] == [0, 1]
    assert TOKENIZER.decode(ids[: tagged[1]]).rstrip() == "unbelievable"
    assert tagged[0] == 0
    for bad, message in (
        ({"tokens": words, "tags": [0]}, "tokens has 3 words, and tags 1 labels; each word has one"),
        ({"tokens": "one two", "tags": [0]}, "tokens is no list of words"),
    ):
        with pytest.raises(DataError, match=message):
            labeled(tmp_path, [bad], task="token_classification").load("train")


def test_a_long_text_keeps_the_tokens_around_it(tmp_path: Path) -> None:
    from tokenizers import processors

    framed = templates.byte_level(eos="</s>")
    first = last = framed.eos_token_id
    framed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", last)]
    )
    text = "yes no the assistant said hello to you"
    all_ids = framed(text)["input_ids"]
    assert all_ids[0] == first and all_ids[-1] == last
    for task, row in (
        ("sequence_classification", {"text": text, "label": 0}),
        ("token_classification", {"tokens": text.split(), "tags": [0] * 8}),
    ):
        sample = labeled(tmp_path, [row], task=task, tokenizer=framed, max_length=6).load("train")[0]
        assert sample["input_ids"].tolist() == [*all_ids[:5], last]
        assert len(sample["labels"]) == (6 if "tokens" in row else 1)


def test_labels_by_the_names_of_the_data_set() -> None:
    from datasets import ClassLabel, List

    for feature in (ClassLabel(names=["yes", "no"]), List(ClassLabel(names=["yes", "no"]))):
        reader = LabelReader(NAMES, feature)
        assert [reader(0), reader(1), reader("no")] == [1, 0, 0]
    assert LabelReader(["LABEL_0", "LABEL_1"], ClassLabel(names=["yes", "no"]))(1) == 1
    other = LabelReader(NAMES, ClassLabel(names=["good", "bad"]))
    with pytest.raises(DataError, match="the label 'bad' is none of no, yes"):
        other(1)
    for value in (2, -1, "maybe", 0.5, None):
        with pytest.raises(DataError, match=r"is none of no, yes; model\.labels names the labels"):
            LabelReader(NAMES, None)(value)


@pytest.mark.parametrize(
    ("names", "value", "expected"),
    [
        (["1", "2", "3", "4", "5"], 5, "5"),
        (["1", "2", "3", "4", "5"], 1, "1"),
        (["1", "0"], 0, "0"),
        (["-1", "0", "1"], -1, "-1"),
        (["true", "false"], True, "true"),
        (["False", "True"], False, "False"),
        (["LABEL_0", "LABEL_1"], True, "LABEL_1"),
        (["bad", "good"], 1, "good"),
    ],
)
def test_a_number_or_a_truth_that_is_a_name_is_that_label(names: list[str], value: object, expected: str) -> None:
    assert names[LabelReader(names, None)(value)] == expected


@pytest.mark.parametrize(("names", "value"), [(["1", "2", "3"], 0), (["good", "bad"], True), (["0", "1"], 2)])
def test_a_number_or_a_truth_that_may_be_another_label_is_refused(names: list[str], value: object) -> None:
    with pytest.raises(DataError, match=f"the label .* is none of {', '.join(names)}"):
        LabelReader(names, None)(value)


def test_several_labels_as_a_list_or_as_a_value_for_each() -> None:
    names = ["a", "b", "c"]
    for labels in ({"a"}, {"a", "c"}, {"b", "c"}, set(names), set[str]()):
        expected = [int(name in labels) for name in names]
        for value in (sorted(labels), [names.index(name) for name in sorted(labels)], expected):
            assert LabelReader(names, None).several(value) == expected
        assert LabelReader(names, None).several([float(one) for one in expected]) == expected
        assert LabelReader(names, None).several([bool(one) for one in expected]) == expected
    two = LabelReader(["a", "b"], None)
    assert (two.several([1, 1]), two.several([0, 0]), two.several([1.0, 0.0])) == ([1, 1], [0, 0], [1, 0])
    for value, message in (
        ([1, 0], "all labels, or a value for each"),
        (["a", "a"], "is there twice"),
        ([0.5, 1.0], "0.5"),
    ):
        with pytest.raises(DataError, match=message):
            two.several(value)


def test_samples_depend_on_the_names(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "yes"}]
    assert labeled(tmp_path, rows).load("train")[0]["labels"].tolist() == [1]
    assert labeled(tmp_path, rows, names=["yes", "no"]).load("train")[0]["labels"].tolist() == [0]
