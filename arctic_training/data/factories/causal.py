"""Data for causal training: plain text, every token of which is a target."""

from typing import Any, ClassVar

import numpy as np

from arctic_training.data.batching.chunking import ConcatenatedRows, concat_and_chunk, split_samples
from arctic_training.data.factories.config import TokenDataConfig
from arctic_training.data.factories.token import TokenDataFactory
from arctic_training.data.formats.remarks import unread_columns
from arctic_training.data.formats.row_error import RowError
from arctic_training.data.preparation import prepare
from arctic_training.data.tokenization.tokenize import SpanTokenizer
from arctic_training.errors.types import DataError


class CausalDataConfig(TokenDataConfig):
    """With ``pack_samples`` a document longer than ``max_length`` is cut into several; without it all documents are put
    one behind the other, an end token after each, and rows of ``max_length`` are cut out of that."""

    default_source: ClassVar[str] = "huggingface_causal"


class CausalDataFactory(TokenDataFactory[CausalDataConfig]):
    """Rows with a column ``text``."""

    name = "causal"
    config_type = CausalDataConfig

    def process(self, dataset: Any) -> Any:
        if "text" not in dataset.column_names:
            raise DataError(
                f"causal training reads the column text; there are {', '.join(dataset.column_names)}. A source of type "
                "huggingface_causal takes it from the column that its key column names"
            )
        unread_columns(dataset.column_names, ["text"])
        settings = getattr(self.trainer.config.tokenizer, "tokenize_kwargs", None) or {}
        encode = EncodeText(self.tokenizer, settings)
        return prepare.map_rows(
            dataset.select_columns(["text"]), encode, processes=self.config.num_proc, folder=self.cache_folder
        )

    def postprocess_samples(self, samples: Any) -> Any:
        if self.config.pack_samples:
            return self._cut_to_rows(split_samples(samples, self.max_length))
        order = np.random.Generator(np.random.PCG64(self.config.seed)).permutation(len(samples))
        return ConcatenatedRows(*concat_and_chunk(samples, self.max_length, order, whole=self.config.drop_last))


class EncodeText:
    """Texts to a table of ``input_ids``, each ending with the end token."""

    def __init__(self, tokenizer: Any, settings: dict[str, Any]) -> None:
        """``settings`` are handed to the tokenizer."""
        self.end = tokenizer.eos_token_id
        self.tokenize = SpanTokenizer(tokenizer, settings)

    def __call__(self, rows: prepare.Rows, first: int) -> Any:
        """Raises `RowError`."""
        for n, row in enumerate(rows):
            if not isinstance(row["text"], str):
                raise RowError(first + n, f"text is {row['text']!r}, which is no text")
        made = []
        for ids, _ in self.tokenize([row["text"] for row in rows], [[]] * len(rows), special=True):
            ended = self.end is None or (len(ids) and ids[-1] == self.end)
            made.append(ids if ended else np.append(ids, np.int32(self.end)))
        return prepare.token_table({"input_ids": made})
