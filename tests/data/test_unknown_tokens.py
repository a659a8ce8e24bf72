"""Tokens outside a strict tokenizer's vocabulary: all are reported, by word and place, for every data factory."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from arctic_training.config.sections.tokenizer import TokenizerConfig
from arctic_training.data.factories.causal import CausalDataFactory
from arctic_training.data.factories.dpo import DPODataFactory
from arctic_training.data.factories.sft import SFTDataFactory
from arctic_training.data.factories.sourced import SourcedDataFactory
from arctic_training.errors.types import DataError
from arctic_training.tokenizer.lexer_factory import LexerConfig, LexerFactory
from tests.data.view import make

SECTION = {"type": "lexer", "vocab": {"range": {"x": ["x", 0, 9]}, "misc": ["+", "-"]}}
MEND = "; add them to tokenizer.vocab, or set tokenizer.strict: false"


def lexer(**more: Any) -> tuple[Any, LexerConfig]:
    config = LexerConfig.model_validate(SECTION | more)
    view: Any = SimpleNamespace(config=SimpleNamespace(recipe_dir=Path()))
    return LexerFactory(view, config)(), config


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problems(*answers: str) -> list[dict[str, Any]]:
    return [{"problem": "x1 + x2", "answer": answer} for answer in answers]


def factory(folder: Path, cls: Any, sources: list[Any], **more: Any) -> Any:
    tokenizer, config = more.pop("lexer", None) or lexer()
    section = {"sources": sources, "cache_dir": str(folder / "cache"), **more}
    data_factory = make(cls, tokenizer, section, train_iters=2, epochs=1)
    data_factory.trainer.config.tokenizer = config
    return data_factory


def refused(data_factory: Any) -> str:
    with pytest.raises(DataError) as caught:
        next(iter(data_factory().train))
    return str(caught.value)


def test_all_words_of_all_sources_are_told_with_their_first_place(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", problems("x1", "x1 + y", "% + y", "x12-y", "x1"))
    second = write(tmp_path / "b.jsonl", problems("y", "zed2"))
    held = write(tmp_path / "c.jsonl", problems("x1", "x1", "y + @"))
    data_factory = factory(tmp_path, SFTDataFactory, [first, second], eval_sources=[held])
    places = {"y": f"{first}:2", "%": f"{first}:3", "x12": f"{first}:4", "zed2": f"{second}:2", "@": f"{held}:3"}
    expected = ", ".join(f"{word!r} (first in {place})" for word, place in places.items())
    assert refused(data_factory) == f"tokenizer.vocab: 5 tokens of the data are not in the vocabulary: {expected}{MEND}"
    assert not list((tmp_path / "cache").glob("*/*"))
    data_factory = factory(tmp_path, SFTDataFactory, [write(tmp_path / "d.jsonl", problems("x1"))], eval_sources=[held])
    assert f"2 tokens of the data are not in the vocabulary: 'y' (first in {held}:3), '@' (first in" in refused(
        data_factory
    )


def test_of_many_words_twenty_are_told_with_their_place_and_a_thousand_in_all(tmp_path: Path) -> None:
    many = (" ".join(f"y{n}" for n in range(start, start + 49)) for start in range(30, 1_500, 49))
    source = write(tmp_path / "a.jsonl", problems(*(f"x1 y{n}" for n in range(30)), *many))
    message = refused(factory(tmp_path, SFTDataFactory, [source]))
    assert message.startswith("tokenizer.vocab: 1,500 tokens of the data are")
    assert f"'y19' (first in {source}:20), 'y20', 'y21'," in message
    assert "'y999', and 500 more; " in message and "y1000" not in message


def test_it_is_the_row_of_the_source_when_some_are_taken(tmp_path: Path) -> None:
    rows = problems(*["x1"] * 50, "y", *["x2"] * 49)
    source = {"name_or_path": write(tmp_path / "a.jsonl", rows), "sample_count": 99}
    for seed in range(3):
        data_factory = factory(tmp_path, SFTDataFactory, [source | {"sample_seed": seed}])
        message = refused(data_factory)
        assert f"1 token of the data is not in the vocabulary: 'y' (first in {source['name_or_path']}:51)" in message


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    rows = problems(*["x1"] * 10_000, "y", *["x2"] * 1_000, "z", "y")
    source = write(tmp_path / "a.jsonl", rows)
    message = refused(factory(tmp_path, SFTDataFactory, [source], num_proc=2))
    assert f"'y' (first in {source}:10001), 'z' (first in {source}:11002)" in message


def test_causal_texts(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "x1"}, {"text": "a x2"}])
    assert f"'a' (first in {source}:2)" in refused(factory(tmp_path, CausalDataFactory, [source]))


@pytest.mark.parametrize("column", ["problem", "chosen", "rejected"])
def test_either_answer_of_a_preference(tmp_path: Path, column: str) -> None:
    row = {"problem": "x1 +", "chosen": "x2", "rejected": "x3"}
    source = write(tmp_path / "a.jsonl", [row, row | {column: "x1 y"}])
    assert f": 'y' (first in {source}:2);" in refused(factory(tmp_path, DPODataFactory, [source]))


def test_rows_that_are_tokens_already(tmp_path: Path) -> None:
    good, bad = lexer()[0]("x1 x2")["input_ids"], lexer()[0]("x1 y")["input_ids"]
    source = {"name_or_path": write(tmp_path / "a.jsonl", [{"input_ids": good}, {"input_ids": bad}]), "process": False}
    assert f": '[UNK]' (first in {source['name_or_path']}:2);" in refused(factory(tmp_path, SFTDataFactory, [source]))


def test_a_stream_refuses_the_row_that_it_meets(tmp_path: Path) -> None:
    source = {"name_or_path": write(tmp_path / "a.jsonl", problems("x1", "x1 y %")), "streaming": True}
    message = refused(factory(tmp_path, SFTDataFactory, [source], stream_buffer=4))
    row = json.dumps(problems("x1 y %")[0])
    expected = f"not in the tokenizer's vocabulary: 'y', '%'{MEND}; the row begins {row}"
    assert message == f"{source['name_or_path']}: {expected}"


def test_a_strict_run_takes_nothing_that_another_has_cached(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", problems("x1", "y"))
    loose = factory(tmp_path, SFTDataFactory, [source], lexer=lexer(strict=False))()
    unknown = lexer()[0].unk_token_id
    assert sum(int(np.count_nonzero(row["input_ids"] == unknown)) for row in loose.train.dataset) == 1
    assert "'y' (first in" in refused(factory(tmp_path, SFTDataFactory, [source]))


@pytest.mark.parametrize("strict", [True, False])
def test_strictness_is_saved_with_the_tokenizer(tmp_path: Path, strict: bool) -> None:
    source = write(tmp_path / "a.jsonl", problems("x1", "y"))
    lexer(strict=strict)[0].save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved"), TokenizerConfig(type="huggingface")
    data_factory = factory(tmp_path, SFTDataFactory, [source], lexer=loaded)
    if not strict:
        assert len(data_factory().train.dataset) == 2
        return
    expected = f"tokenizer: 1 token of the data is not in the vocabulary: 'y' (first in {source}:2); it was saved by"
    assert refused(data_factory) == f"{expected} a strict lexer, which takes no others"


class AsksItself(SourcedDataFactory[Any]):
    """Asks the tokenizer without our help, under names of its own, two samples a row, the longest first."""

    name = "asks_itself_for_tests"

    def process(self, dataset: Any) -> Any:
        from datasets import Dataset

        texts = [text for row in dataset for text in (row["problem"], row["answer"])]
        ids = [self.tokenizer(text)["input_ids"] for text in sorted(texts, key=len, reverse=True)]
        return Dataset.from_dict({"query_ids": ids, "input_ids": [[1, 2]] * len(ids)})


@pytest.mark.parametrize("streaming", [False, True])
def test_a_factory_that_asks_the_tokenizer_itself(tmp_path: Path, streaming: bool) -> None:
    source = {"name_or_path": write(tmp_path / "a.jsonl", problems("x1", "x2", "x1 y", "zz")), "streaming": streaming}
    message = refused(factory(tmp_path, AsksItself, [source], **{"stream_buffer": 4} if streaming else {}))
    if streaming:
        assert "not in the tokenizer's vocabulary: 'y'" in message and '"x1 y"' in message
    else:
        file = source["name_or_path"]
        assert (
            f"2 tokens of the data are not in the vocabulary: 'y' (first in {file}:3), 'zz' (first in {file}:4);"
            in message
        )


def test_what_is_evaluated_on_is_told_of_all_its_sources(tmp_path: Path) -> None:
    good, one, two = (write(tmp_path / f"{n}.jsonl", problems("x1", word)) for n, word in enumerate(("x2", "y", "z")))
    message = refused(factory(tmp_path, SFTDataFactory, [good], eval_sources=[one, two]))
    assert f"'y' (first in {one}:2), 'z' (first in {two}:2);" in message


def test_a_prompt_and_its_completion_stay_apart(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"prompt": "x1 + x1", "completion": "x2"}])
    data_factory = factory(tmp_path, SFTDataFactory, [source])
    (sample,) = data_factory().train.dataset
    assert data_factory.tokenizer.decode(sample["input_ids"]) == "x1 + x1 x2 [EOS]"
    assert data_factory.tokenizer.decode(sample["labels"][sample["labels"] != -100]) == "x2 [EOS]"
