"""Data for causal training: plain text, every token of which has a label."""

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import model_validator

from arctic_training.data.batching.chunking import ConcatenatedRows, concat_and_chunk, split_samples
from arctic_training.data.factories.config import TokenDataConfig
from arctic_training.data.factories.token import TokenDataFactory
from arctic_training.data.formats.remarks import count, unread_columns
from arctic_training.data.preparation.row_encoder import Columns, RowEncoder
from arctic_training.data.preparation.samples import Samples, TokenSamples
from arctic_training.data.sources.arrow_rows import Row
from arctic_training.data.tokenization.tokenize import SpanTokenizer, end_token
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset


class CausalDataConfig(TokenDataConfig):
    """With ``pack_samples`` a document longer than ``max_length`` is split; without it all documents are concatenated,
    an end token after each, and cut into rows of ``max_length``."""

    default_source: ClassVar[str] = "huggingface_causal"

    @model_validator(mode="after")
    def _check_rows(self) -> "CausalDataConfig":
        if self.extra_columns and not self.pack_samples:
            raise ValueError("extra_columns: without pack_samples a row is cut from several documents; set it to true")
        return self


class CausalDataFactory(TokenDataFactory[CausalDataConfig]):
    """Encodes rows with a column ``text``."""

    name = "causal"

    def process(self, dataset: "Dataset") -> "Dataset":
        if "text" not in dataset.column_names:
            raise DataError(
                f"causal training reads the column text; there are {', '.join(dataset.column_names)}. A source of type "
                "huggingface_causal takes it from the column that its key column names"
            )
        unread_columns(dataset.column_names, ["text"])
        tokenizer = SpanTokenizer(self.tokenizer, self.tokenize_arguments)
        return self.map_rows(dataset.select_columns(["text"]), RowEncoder(_read_text, partial(_encode, tokenizer)))

    def postprocess_samples(self, samples: Samples) -> TokenSamples:
        if self.config.pack_samples:
            too_long = int((samples.lengths() > self.max_length).sum())
            count("split", f"documents longer than max_length = {self.max_length}", too_long)
            return self._fill_rows(split_samples(samples, self.max_length))
        order = np.random.Generator(np.random.PCG64(self.config.seed)).permutation(len(samples))
        return ConcatenatedRows(*concat_and_chunk(samples, self.max_length, order, drop_last=self.config.drop_last))


def _read_text(row: Row) -> str:
    """Raises `DataError` for a row without text."""
    if not isinstance(row["text"], str):
        raise DataError(f"text is {row['text']!r}, which is no text")
    return row["text"]


def _encode(tokenize: SpanTokenizer, texts: list[str], first: int) -> Columns:
    """Returns ``input_ids``, the end token last."""
    end = end_token(tokenize.tokenizer)
    encoded = []
    for ids, _ in tokenize(texts, [[]] * len(texts), add_special_tokens=True):
        encoded.append(ids if end is None or (len(ids) and ids[-1] == end) else np.append(ids, np.int32(end)))
    return {"input_ids": encoded}
