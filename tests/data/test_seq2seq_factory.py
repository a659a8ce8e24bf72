"""Sources and targets: how they are encoded, truncated, dropped and padded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from arctic_training.config.sections.component import parse_component
from arctic_training.data.batching.collate import pad_rows
from arctic_training.data.batching.fingerprint import _summary
from arctic_training.data.factories.seq2seq import Seq2SeqDataFactory
from arctic_training.data.formats.chat import Sample
from arctic_training.data.formats.row_error import NothingLeft, RowError
from arctic_training.data.preparation.prompt_encoder import SourceTargetEncoder
from arctic_training.data.preparation.row_encoder import token_table
from arctic_training.data.preparation.samples import Samples
from tests import tiny
from tests.data.view import view


def ids_of(*texts: str) -> list[int]:
    return [ord(letter) for text in texts for letter in text]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer without a chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.save_tokenizer(tmp_path_factory.mktemp("plain"), template=None))


def test_a_question_and_its_answer_are_texts_without_a_template(plain: Any) -> None:
    chat = Sample([{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}])
    texts = Sample(prompt="one two", completion="three")
    for encoder_decoder in (True, False):
        encoder = SourceTargetEncoder(plain, encoder_decoder=encoder_decoder)
        for source, target in encoder.encode_pairs([chat, texts], 0):
            assert source.tolist() == plain("one two").input_ids
            assert target.tolist() == [*plain("three").input_ids, plain.eos_token_id]


def test_an_encoder_gets_the_special_tokens_of_its_tokenizer(plain: Any) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    inner = plain.backend_tokenizer.__class__.from_str(plain.backend_tokenizer.to_str())
    end = plain.eos_token
    inner.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, plain.eos_token_id)])
    ends = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=plain.pad_token, eos_token=end)
    ((source, target),) = SourceTargetEncoder(ends, encoder_decoder=True).encode_pairs(
        [Sample(prompt="one", completion="two")], 0
    )
    assert source.tolist() == [*plain("one").input_ids, 3] and target.tolist() == [*plain("two").input_ids, 3]
    # a decoder goes on behind the source, which therefore has no end
    ((source, target),) = SourceTargetEncoder(ends, encoder_decoder=False).encode_pairs(
        [Sample(prompt="one", completion="two")], 0
    )
    assert source.tolist() == plain("one").input_ids and target.tolist() == [*plain("two").input_ids, 3]


def test_a_tokenizer_that_has_special_tokens_for_targets_puts_them_there(plain: Any) -> None:
    class Translating(type(plain)):  # type: ignore[misc]
        def _switch_to_target_mode(self) -> None:
            self.marks = True

        def _switch_to_input_mode(self) -> None:
            self.marks = False

        def _encode_plus(self, text: Any, **kwargs: Any) -> Any:
            encoded = super()._encode_plus(text, **kwargs)
            if self.marks:
                encoded["input_ids"] = [[2, *ids] for ids in encoded["input_ids"]]
            return encoded

    plain_copy = Translating(tokenizer_object=plain.backend_tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>")
    plain_copy.marks = False
    ((source, target),) = SourceTargetEncoder(plain_copy, encoder_decoder=True).encode_pairs(
        [Sample(prompt="one", completion="two")], 0
    )
    assert target.tolist() == [2, *plain("two").input_ids, 3] and source.tolist() == plain("one").input_ids


def test_what_has_no_target_is_dropped_and_what_has_no_source_refused(plain: Any) -> None:
    encoder = SourceTargetEncoder(plain, encoder_decoder=True)
    question = [{"role": "user", "content": "one"}]
    for nothing in (Sample(), Sample(question), Sample(prompt="one", completion=" ")):
        ((source, target), _) = encoder.encode_pairs([nothing, Sample(prompt="a", completion="b")], 0)
        assert len(source) == len(target) == 0
    with pytest.raises(RowError, match="no source before the target") as error:
        encoder.encode_pairs([Sample(prompt="one", completion="two"), Sample(prompt=" ", completion="two")], 7)
    assert error.value.row == 8


def factory(tmp_path: Path, *, encoder_decoder: bool, **keys: Any) -> Any:
    config = parse_component("data_factory", {"type": "seq2seq", "sources": ["x.jsonl"], **keys})
    factory_of_pairs = Seq2SeqDataFactory(view(tokenizer=SimpleNamespace(pad_token_id=0, eos_token_id=1)), config)  # type: ignore[arg-type]
    factory_of_pairs.__dict__["encoder_decoder"] = encoder_decoder
    return factory_of_pairs


def samples(*sizes: tuple[int, int]) -> Samples:
    """Sources of 10, 11, ... and targets of 50, 51, ..., of the sizes."""
    columns = {
        "input_ids": [np.arange(10, 10 + size, dtype=np.int32) for size, _ in sizes],
        "completion_ids": [np.arange(50, 50 + size, dtype=np.int32) for _, size in sizes],
    }
    return Samples(token_table(columns))


def test_too_long_samples_are_dropped_or_truncated(tmp_path: Path) -> None:
    rows = samples((3, 2), (9, 2), (3, 9), (4, 5))
    limits = {"max_length": 5, "max_source_length": 4}
    kept = factory(tmp_path, encoder_decoder=True, **limits).postprocess_samples(rows)
    assert [len(one["input_ids"]) for one in map(kept.__getitem__, range(len(kept)))] == [3, 4]
    cut = factory(tmp_path, encoder_decoder=True, filter_samples=False, **limits).postprocess_samples(rows)
    assert [cut[n]["input_ids"].tolist() for n in range(4)] == [
        [10, 11, 12],
        [10, 11, 12, 18],  # the last token of a source is its end
        [10, 11, 12],
        [10, 11, 12, 13],
    ]
    assert [len(cut[n]["completion_ids"]) for n in range(4)] == [2, 2, 5, 5]
    assert cut[2]["completion_ids"].tolist() == [50, 51, 52, 53, 54]


def test_in_a_decoder_source_and_target_share_the_length(tmp_path: Path) -> None:
    rows = samples((3, 2), (9, 2), (3, 9), (4, 5))
    kept = factory(tmp_path, encoder_decoder=False, max_length=8).postprocess_samples(rows)
    assert len(kept) == 1
    cut = factory(tmp_path, encoder_decoder=False, max_length=8, filter_samples=False).postprocess_samples(rows)
    pairs = [(cut[n]["input_ids"].tolist(), cut[n]["completion_ids"].tolist()) for n in range(4)]
    assert pairs[0] == ([10, 11, 12], [50, 51])
    assert pairs[1] == ([13, 14, 15, 16, 17, 18], [50, 51])  # what is next to the target stays
    assert pairs[2] == ([12], [50, 51, 52, 53, 54, 55, 56])
    assert pairs[3] == ([11, 12, 13], [50, 51, 52, 53, 54])
    assert all(len(source) + len(target) <= 8 for source, target in pairs)


def test_nothing_that_fits_is_an_error_and_truncation_is_seen_by_the_guard(tmp_path: Path) -> None:
    rows = samples((9, 9), (9, 9))
    with pytest.raises(NothingLeft, match=r"2 of 2 samples .* 2 sources of up to 9 tokens, and 2 targets of up to 9"):
        factory(tmp_path, encoder_decoder=True, max_length=5).postprocess_samples(rows)
    fingerprints = {
        _summary(
            factory(tmp_path, encoder_decoder=True, max_length=size, filter_samples=False).postprocess_samples(rows),
            "samples",
        )
        for size in (4, 5, 6)
    }
    assert len(fingerprints) == 3


def test_rows_are_padded_to_a_multiple_but_not_beyond_what_a_model_has(tmp_path: Path) -> None:
    ids, mask = pad_rows([np.array([5, 6, 7], np.int32), np.array([8], np.int32)], 0, multiple=8, longest=5)
    assert ids.tolist() == [[5, 6, 7, 0, 0], [8, 0, 0, 0, 0]] and mask.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    factory_of_pairs = factory(tmp_path, encoder_decoder=True, max_length=32, div_length=4)
    rows = samples((3, 2), (6, 5))
    batch = factory_of_pairs.collate([rows[0], rows[1]])
    assert {name: tuple(one.shape) for name, one in batch.items()} == {
        "input_ids": (2, 8),
        "attention_mask": (2, 8),
        "labels": (2, 8),
    }
    assert batch["labels"][0].tolist() == [50, 51] + [-100] * 6  # not shifted, and the first one counts
    blank = factory_of_pairs.collate([factory_of_pairs.make_padding_sample(rows[0])])
    assert (blank["labels"] == -100).all() and blank["input_ids"].shape == (1, 4)


def test_problems_and_answers_stand_in_the_lines_of_a_text_file(tmp_path: Path) -> None:
    from arctic_training.data.sources.text import TextSource
    from arctic_training.errors.types import DataError

    file = tmp_path / "sums.txt"
    file.write_text("1 + 2 # 3\n\n4 + 5 # 9\n")
    config = parse_component("data_source", {"type": "text", "name_or_path": str(file), "separator": " # "})
    source = TextSource(SimpleNamespace(cache_folder=tmp_path), config)  # type: ignore[arg-type]
    assert source("train").to_list() == [{"problem": "1 + 2", "answer": "3"}, {"problem": "4 + 5", "answer": "9"}]
    for line in ("6 + 7 = 13", "6 # 7 # 8", "6 + 7 #  "):
        file.write_text(f"1 + 2 # 3\n\n{line}\n")
        with pytest.raises(DataError, match=r"sums.txt:3: expected a problem, ' # ' and an answer"):
            source("train")
    with pytest.raises(ValueError, match="separator parts a line, and sample_by is document"):
        parse_component("data_source", {**config.model_dump(), "sample_by": "document"})
