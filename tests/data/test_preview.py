"""The preview of data: every kind of row as it is trained on, and statistics that were counted in another way."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.data.factories.dpo import DPODataFactory
from arctic_training.data.factories.labeled_text import LabeledTextDataFactory
from arctic_training.data.factories.pair import PairDataFactory
from arctic_training.data.factories.prompt import PromptDataFactory
from arctic_training.data.factories.seq2seq import Seq2SeqDataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.factories.tensor import TensorDataFactory
from arctic_training.data.factories.unpaired_preference import UnpairedPreferenceDataFactory
from arctic_training.data.preview.preview import SetPreview, preview_set, to_json
from arctic_training.data.preview.rows import PreviewRow, batch_rows
from arctic_training.data.preview.statistics import histogram
from arctic_training.data.preview.tokens import token_texts, visible
from tests.data import templates
from tests.data.test_labeled_text import NAMES, NamedConfig, NamedModel
from tests.data.view import make

TOKENIZER = templates.byte_level(templates.CHATML)
END = "<|im_end|>"


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def preview(factory: type[Any], folder: Path, rows: list[Any], *, micro: int = 2, **more: Any) -> SetPreview:
    """The preview of the training data, of all rows."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    view = {name: more.pop(name) for name in ("model", "max_new_tokens") if name in more}
    section = {"sources": [str(path)], "cache_dir": str(folder / "cache"), **more}
    attributes = section.pop("attributes", {})
    one = make(factory, TOKENIZER, section, micro=micro, **view)
    vars(one).update(attributes)
    loader = one().train
    assert loader is not None
    return preview_set(one, loader, "train", TOKENIZER, 1_000)


def written(row: PreviewRow) -> dict[str, str]:
    """The texts of a row by name, with targets in brackets."""
    texts = {}
    for text in row.texts:
        spans = ""
        targets = [False] * len(text.ids) if text.targets is None else text.targets.tolist()
        for token, target in zip(token_texts(TOKENIZER, text.ids.tolist()), targets, strict=True):
            spans += f"[{token}]" if target else token
        texts[text.name] = spans.replace("][", "")
    return texts


def rendered(*turns: str) -> str:
    """A chat as the template renders it, with what the assistant says in brackets."""
    texts = [(turn["role"], turn["content"]) for turn in chat(*turns)]
    answers = [f"[{text}{END}]" if role == "assistant" else text + END for role, text in texts]
    return "".join(f"<|im_start|>{role}\n{text}\n" for (role, _), text in zip(texts, answers, strict=True))


@pytest.mark.parametrize("packs", [False, True])
def test_with_mask_history_the_last_answers_are_shown_as_targets(tmp_path: Path, packs: bool) -> None:
    rows = [{"messages": chat("one?", "two", "three?", "four")}, {"messages": chat("q", "a", "unanswered")}]
    one = preview(SFTDataFactory, tmp_path, rows, pack_samples=packs, mask_history=True)
    shown = [written(PreviewRow([text]))[""] for row in one.rows for text in row.texts]
    earlier = rendered("one?", "two", "three?", "four").replace(f"[two{END}]", f"two{END}")
    assert sorted(shown) == sorted([earlier, rendered("q", "a", "unanswered")])
    assert one.statistics.summary()["target_spans"] == 2


@pytest.mark.parametrize("packs", [False, True])
def test_chats_are_shown_as_they_are_trained_on(tmp_path: Path, packs: bool) -> None:
    turns = [("q", "a"), ("one?", "two", "three?", "four"), ("é\u200d", "ü\n")]
    one = preview(SFTDataFactory, tmp_path, [{"messages": chat(*some)} for some in turns], pack_samples=packs)
    shown = [written(PreviewRow([text]))[""] for row in one.rows for text in row.texts]
    assert sorted(shown) == sorted(rendered(*some) for some in turns)
    assert len(one.rows) == (1 if packs else 3)
    for row in one.rows:
        length = sum(len(text.ids) + text.padding for text in row.texts)
        assert length % (256 if packs else 8) == 0
        assert any(text.padding for text in row.texts) == (length > sum(len(text.ids) for text in row.texts))
    tokens = [len(TOKENIZER.apply_chat_template(chat(*some), tokenize=True, return_dict=False)) for some in turns]
    summary = one.statistics.summary()
    assert summary["texts"][""]["tokens"] == sum(tokens) and summary["texts"][""]["longest"] == max(tokens)
    assert summary["samples"] == 3 and summary["rows"] == len(one.rows)
    assert (summary["target_spans"], summary["target_spans_without_end_token"]) == (4, 0)


@pytest.mark.parametrize(("packs", "multiple"), [(False, 8), (False, 1), (True, 256)])
def test_the_fill_is_the_share_of_tokens_that_are_not_padding(tmp_path: Path, packs: bool, multiple: int) -> None:
    rows = [{"messages": chat("q", "a" * n)} for n in (1, 30, 100, 5, 64)]
    one = preview(SFTDataFactory, tmp_path, rows, micro=1, pack_samples=packs, div_length=multiple)
    lengths = [len(TOKENIZER.apply_chat_template(row["messages"], tokenize=True, return_dict=False)) for row in rows]
    padded = sum(multiple * math.ceil(length / multiple) for length in ([sum(lengths)] if packs else lengths))
    assert one.statistics.summary()["fill"] == round(sum(lengths) / padded, 4)


def test_a_packed_row_is_one_row_with_its_documents_in_order(tmp_path: Path) -> None:
    rows = [{"text": f"document {n} " * (n + 1)} for n in range(5)]
    one = preview(CausalDataFactory, tmp_path, rows, micro=1, pack_samples=True, max_length=512)
    (row,) = one.rows
    texts = sorted(TOKENIZER.decode(text.ids) for text in row.texts)
    assert texts == sorted(row["text"] + TOKENIZER.eos_token for row in rows)
    assert all(
        text.targets is not None and text.targets.tolist() == [False] + [True] * (len(text.ids) - 1)
        for text in row.texts
    )
    assert [text.padding > 0 for text in row.texts] == [False] * 4 + [True]
    assert row.samples == [[text] for text in row.texts]


@pytest.mark.parametrize("packs", [False, True])
def test_pairs_of_answers(tmp_path: Path, packs: bool) -> None:
    rows = [
        {"prompt": chat("q"), "chosen": chat("", f"good {n}")[1:], "rejected": chat("", "bad")[1:]} for n in range(3)
    ]
    one = preview(DPODataFactory, tmp_path, rows, pack_samples=packs, max_length=64)
    expected = [
        {"chosen": rendered("q", f"good {n}").rstrip("\n"), "rejected": rendered("q", "bad").rstrip("\n")}
        for n in range(3)
    ]
    assert sorted(map(written, one.rows), key=str) == expected
    assert all(not row.facts for row in one.rows)
    assert one.statistics.summary()["samples"] == 3
    assert one.remarks["messages"] == {"user": 6, "assistant": 6}  # of both completions


@pytest.mark.parametrize("packs", [False, True])
def test_rated_answers_and_those_of_other_prompts(tmp_path: Path, packs: bool) -> None:
    rows = [{"prompt": f"p{n}", "completion": f"c{n}", "label": n < 2} for n in range(3)]
    one = preview(UnpairedPreferenceDataFactory, tmp_path, rows, pack_samples=packs, micro=3)
    shown = sorted((written(row)["completion"], bool(row.facts["label"])) for row in one.rows)
    assert shown == [(f"p{n}[c{n}{END}]", n < 2) for n in range(3)]
    others = {text["completion"][:2]: text["mismatched"] for text in map(written, one.rows)}
    assert all(other[:2] == prompt and f"[c{prompt[1]}" not in other for prompt, other in others.items())
    summary = one.statistics.summary()
    assert set(summary["texts"]) == {"completion"}  # an answer of another prompt is no more data
    assert summary["values"]["label"]["values"] == {"True": 2, "False": 1}


def test_anchors_and_candidates(tmp_path: Path) -> None:
    rows = [{"anchor": f"a{n}", "positive": f"p{n}", "negatives": [f"n{n}", f"m{n}"]} for n in range(3)]
    one = preview(PairDataFactory, tmp_path, rows, num_negatives=2)
    expected = [
        {"anchor": f"a{n}", "positive": f"p{n}", "negative 1": f"n{n}", "negative 2": f"m{n}"} for n in range(3)
    ]
    assert sorted(map(written, one.rows), key=str) == expected  # without the row that fills the last batch
    assert one.statistics.summary()["texts"]["anchor"]["targets"] is None


def test_prompts_and_references(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": f"a{n}", "level": n} for n in range(2)]
    rows.append({"question": "long " * 200, "answer": "a", "level": 2})
    one = preview(PromptDataFactory, tmp_path, rows, max_new_tokens=8, max_length=100, extra_columns=["level"])
    prompts = [f"<|im_start|>user\nq{n}{END}\n<|im_start|>assistant\n" for n in range(2)]
    shown = sorted(one.rows, key=lambda row: int(row.facts["level"]))  # type: ignore[call-overload]
    assert list(map(written, shown)) == [{"prompt": prompts[n], "reference": f"a{n}{END}"} for n in range(2)]
    assert one.remarks["dropped"] == {"prompts that leave no room for max_new_tokens in max_length = 100": 1}


def test_labelled_texts(tmp_path: Path) -> None:
    rows = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]
    one = preview(LabeledTextDataFactory, tmp_path, rows, model=model("sequence_classification"))
    assert sorted((written(row)[""], row.facts["label"]) for row in one.rows) == [("bad", "no"), ("good", "yes")]
    several = [{"text": "both", "label": ["yes", "no"]}, {"text": "none", "label": []}]
    (tmp_path / "several").mkdir()
    one = preview(
        LabeledTextDataFactory, tmp_path / "several", several, model=model("sequence_classification"), multi_label=True
    )
    assert sorted((written(row)[""], row.facts["label"]) for row in one.rows) == [("both", "no, yes"), ("none", "")]
    numbers = [{"text": "good", "label": 0.1}, {"text": "bad", "label": -3}]
    (tmp_path / "numbers").mkdir()
    one = preview(LabeledTextDataFactory, tmp_path / "numbers", numbers, model=model("regression"))
    assert sorted((written(row)[""], row.facts["label"]) for row in one.rows) == [("bad", "-3.0"), ("good", "0.1")]
    words = [{"tokens": ["one", "two"], "tags": ["yes", "no"]}]
    (tmp_path / "words").mkdir()
    (row,) = preview(LabeledTextDataFactory, tmp_path / "words", words, model=model("token_classification")).rows
    (text,) = row.texts
    assert list(text.tags.values()) == ["yes", "no"] and text.targets is not None
    assert np.flatnonzero(text.targets).tolist() == list(text.tags)


def model(task: str) -> Any:
    return NamedConfig(type=NamedModel.name, task=task, names=NAMES)


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_sources_and_targets(tmp_path: Path, encoder_decoder: bool) -> None:
    rows = [{"prompt": f"s{n}", "completion": f"t{n}"} for n in range(3)]
    one = preview(Seq2SeqDataFactory, tmp_path, rows, max_length=32, attributes={"encoder_decoder": encoder_decoder})
    expected = [
        {"source": f"s{n}", "target": f"[t{n}{END}]"} if encoder_decoder else {"": f"s{n}[t{n}{END}]"} for n in range(3)
    ]
    assert sorted(map(written, one.rows), key=str) == expected


def test_tensors(tmp_path: Path) -> None:
    points = np.array([[0, 2], [4, 2], [0, 2]], np.float32)
    np.savez(tmp_path / "rows.npz", points=points, digit=np.array([7, 7, 3]))
    factory = TensorDataFactory(
        SimpleNamespace(  # type: ignore[arg-type]
            config=SimpleNamespace(
                micro_batch_size=2, gradient_accumulation_steps=1, sequence_parallel_size=1, epoch_length=0
            ),
            data_rank=0,
            data_world=1,
        ),
        TensorDataFactory.config_type.model_validate({"type": "tensor", "sources": [str(tmp_path / "rows.npz")]}),  # type: ignore[arg-type]
    )
    loader = factory().train
    assert loader is not None
    one = preview_set(factory, loader, "train", None, 3)
    assert sorted(row.facts["points"].tolist() for row in one.rows) == [[0, 2], [0, 2], [4, 2]]  # type: ignore[attr-defined]
    assert all(set(row.facts) == {"points", "digit"} for row in one.rows)
    values = one.statistics.summary()["values"]
    assert values["digit"]["values"] == {"7": 2, "3": 1}
    moments = [values["points"][name] for name in ("min", "max", "mean", "standard_deviation")]
    assert moments == pytest.approx([0, 4, points.mean(), points.std()])
    assert values["points"]["shapes"] == {"float32 [2]": 3}


def test_a_batch_of_any_other_factory_is_shown_by_its_keys() -> None:
    ids, mask = torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "score": torch.tensor([0.5, 1.5]),
        "name": ["a", "b"],
        "scale": 3.0,
    }
    batch |= {"teacher": {"input_ids": ids, "attention_mask": mask}, "row_weights": torch.tensor([1.0, 0.0])}
    (row,) = batch_rows(batch)  # the other one only fills the batch
    assert [(text.name, text.ids.tolist(), text.padding) for text in row.texts] == [
        ("", [5, 6], 1),
        ("teacher", [5, 6], 1),
    ]
    assert {name: str(value) for name, value in row.facts.items()} == {"score": "tensor(0.5000)", "name": "a"}
    assert [row.facts["rows"].tolist() for row in batch_rows(torch.eye(2))] == [[1, 0], [0, 1]]  # type: ignore[attr-defined]


def test_what_is_wrong_with_the_data_is_counted(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    rows: list[Any] = [{"messages": chat("q", "same")}] * 3
    rows += [{"messages": [{"role": "system", "content": "s"}, *chat("q", "a")], "tools": tools}]
    rows += [{"messages": chat("q", "word " * 100)}] + [{"messages": chat("q", f"a{n}")} for n in range(20)]
    rows += [{"messages": [{**chat("q")[0]}, {"role": "assistant", "content": "never", "weight": 0}]}]
    section: dict[str, Any] = {"max_length": 60, "filter_samples": False, "max_share_without_targets": 0.1}
    for _ in range(2):  # the second one reads the cache
        one = preview(SFTDataFactory, tmp_path, rows, **section)
        summary = one.statistics.summary()
        assert summary["samples"] == 25 and summary["duplicates"] == 2 and summary["without_targets"] == 0
        ((times, (text,)),) = one.statistics.most_repeated(1)
        assert (times, written(PreviewRow([text]))[""]) == (3, rendered("q", "same"))
        assert (summary["target_spans"], summary["target_spans_without_end_token"]) == (25, 1)  # it is cut off
        assert one.remarks["truncated"] == {"samples longer than max_length = 60": 1}
        assert one.remarks["dropped"] == {"they have no target token": 1}
        assert one.remarks["messages"] == {"user": 26, "assistant": 26, "system": 1}
        assert one.remarks["tools"] == {"chats with tools": 1}
        (source,) = one.remarks["rows"]
        assert one.remarks["rows"][source] == one.remarks["rows used"][source] == 26


def test_texts_that_begin_twice_and_samples_shared_with_evaluation() -> None:
    begin = SimpleNamespace(
        bos_token_id=1, eos_token_id=2, added_tokens_decoder={}, is_fast=False, decode=lambda ids: str(ids)
    )

    class Factory:
        row_counts: Any = {}

        def show(self, batch: Any) -> list[PreviewRow]:
            return batch_rows({"input_ids": batch, "labels": batch})

    sets = {}
    for name, ids in {"train": [[1, 1, 2], [1, 5, 2], [1, 6, 2]], "eval": [[1, 5, 2], [1, 7, 2]]}.items():
        sets[name] = preview_set(Factory(), [torch.tensor(ids)], name, begin, 1)  # type: ignore[arg-type]
    printed = to_json(sets, begin)  # type: ignore[arg-type]
    assert printed["train"]["double_bos"] == 1 and printed["eval"]["double_bos"] == 0
    assert printed["eval"]["also_in_train"] == 1 and len(printed["eval"]["first_rows"]) == 1
    json.dumps(printed, allow_nan=False)


@given(st.text(max_size=40))
def test_the_texts_of_tokens_make_the_text(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    texts = token_texts(TOKENIZER, ids)
    assert "".join(texts) == TOKENIZER.decode(ids) and len(texts) == len(ids)
    shown = visible(text)
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert shown.count("\n") == text.count("\n")


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=50))
def test_a_histogram_holds_every_length_once(lengths: list[int]) -> None:
    bins = histogram(np.array(lengths))
    counts = Counter(next(n for n, (first, last, _) in enumerate(bins) if first <= one <= last) for one in lengths)
    assert [number for _, _, number in bins] == [counts[n] for n in range(len(bins))]
    assert len(bins) <= 10 and bins[0][2] and bins[-1][2]
