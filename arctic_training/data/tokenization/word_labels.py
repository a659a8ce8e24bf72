"""Tokenizes words with a label each, and gives the label of a word to its first token."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from arctic_training.data.tokenization.tokenize import Tokens
from arctic_training.errors.types import DataError
from arctic_training.loss.targets import IGNORE_INDEX


def label_words(
    tokenizer: Any, rows: Sequence[tuple[Sequence[str], Sequence[int]]], arguments: Mapping[str, Any]
) -> Iterator[tuple[Tokens, Tokens]]:
    """Yields the token ids of each row, int32 ``[length]``, and their labels: -100 but for the first token of a word.

    A row is words and their labels. The words are tokenized as one text, with spaces between them, as a model will read
    it; ``arguments`` are passed to the tokenizer. Raises `DataError` for a tokenizer without offsets.
    """
    if not tokenizer.is_fast:
        raise DataError(f"labels of words need a fast tokenizer; {type(tokenizer).__name__} has no offsets")
    texts = [" ".join(words) for words, _ in rows]
    settings = {"return_attention_mask": False, **arguments, "return_offsets_mapping": True}
    encoding = tokenizer(texts, **settings)
    for (words, tags), ids, offsets in zip(rows, encoding["input_ids"], encoding["offset_mapping"], strict=True):
        places = np.array(offsets, np.int64).reshape(-1, 2)
        labels = np.full(len(ids), IGNORE_INDEX, np.int32)
        starts = [0, *accumulate(len(word) + 1 for word in words)]
        for word, start, tag in zip(words, starts, tags, strict=False):
            inside = np.flatnonzero((places[:, 0] < start + len(word)) & (places[:, 1] > start))
            if len(inside) and labels[inside[0]] == IGNORE_INDEX:
                labels[inside[0]] = tag
        yield np.array(ids, np.int32), labels
