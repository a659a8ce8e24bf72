"""Tokenizes texts, and finds the tokens of spans of characters."""

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arctic_training.data.formats.remarks import remark
from arctic_training.data.tokenization.chat_template import Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_unknown_words: ContextVar[dict[str, None] | None] = ContextVar("unknown", default=None)


@contextmanager
def unknown_words() -> Iterator[dict[str, None]]:
    """Collects the words that this thread's tokenizers replace by the unknown token inside, in their order."""
    words: dict[str, None] = {}
    token = _unknown_words.set(words)
    try:
        yield words
    finally:
        _unknown_words.reset(token)


def end_token(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Returns the id of the token that ends a text; None, with a remark, for a tokenizer that has none."""
    end: int | None = tokenizer.eos_token_id
    if end is None:
        remark("has texts without an end token, since the tokenizer has none, so that their ends are not learned")
    return end


class SpanTokenizer:
    """Tokenizes each text once, and returns which tokens hold a character of its spans."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", arguments: Mapping[str, Any] | None = None) -> None:
        """``arguments`` are passed to the tokenizer."""
        self.tokenizer, self.arguments = tokenizer, dict(arguments or {})
        self._bytes = None if self.arguments else token_bytes(tokenizer)

    def __call__(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], *, add_special_tokens: bool = False
    ) -> list[tuple[Tokens, Mask]]:
        """Returns the token ids, int32 ``[length]``, and the mask of the spans' tokens, bool, of each text.

        ``add_special_tokens`` adds the tokenizer's own first and last tokens, which are in no span.
        """
        if self._bytes is None:
            return self._by_offsets(texts, spans, add_special_tokens)
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        # the tokens of all texts, one after the other: numpy is slow at one text at a time
        ids = np.fromiter(itertools.chain.from_iterable(one.ids for one in encodings), np.int32)
        tokens = np.cumsum([0, *map(len, encodings)])
        ends = np.concatenate(([0], np.cumsum(self._bytes[ids])))
        starts = ends[tokens].tolist()
        sizes = np.diff(starts).tolist()
        # in a text of another size some token stands for another text than its own
        exact = [_is_exact(text, size) for text, size in zip(texts, sizes, strict=True)]
        exact_spans = [one if is_exact else () for one, is_exact in zip(spans, exact, strict=True)]
        mask = _span_mask(ends, starts, texts, exact_spans)
        places = zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True)
        return [
            (ids[start:end], mask[start:end]) if is_exact else self._by_offsets([text], [one], add_special_tokens)[0]
            for (start, end), text, one, is_exact in zip(places, texts, spans, exact, strict=True)
        ]

    def _by_offsets(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], add_special_tokens: bool
    ) -> list[tuple[Tokens, Mask]]:
        settings = {"add_special_tokens": add_special_tokens, "return_attention_mask": False, **self.arguments}
        if not texts:  # on which tokenizers fail
            return []
        if not self.tokenizer.is_fast:
            return [
                self._by_prefixes(text, text_spans, settings) for text, text_spans in zip(texts, spans, strict=True)
            ]
        settings["return_offsets_mapping"] = True
        encoding = self.tokenizer(list(texts), **settings)
        tokenized, unknown = [], _unknown_words.get()
        for text, ids, offsets, text_spans in zip(
            texts, encoding["input_ids"], encoding["offset_mapping"], spans, strict=True
        ):
            if unknown is not None:
                pairs = zip(ids, offsets, strict=True)
                unknown |= {text[slice(*span)]: None for one, span in pairs if one == self.tokenizer.unk_token_id}
            mask = np.zeros(len(ids), np.bool_)
            places = np.array(offsets, np.int64).reshape(-1, 2)
            for start, end in text_spans:
                mask |= (places[:, 0] < end) & (places[:, 1] > start)
            tokenized.append((np.array(ids, np.int32), mask))
        return tokenized

    def _by_prefixes(self, text: str, spans: Sequence[Span], settings: Mapping[str, Any]) -> tuple[Tokens, Mask]:
        """Finds the tokens of spans by tokenizing prefixes of the text, for a tokenizer without offsets."""
        ids = self.tokenizer(text, **settings)["input_ids"]
        mask = np.zeros(len(ids), np.bool_)
        for start, end in spans:
            first, last = (self._common(ids, text[:place], settings) for place in (start, end))
            mask[first[0] : last[0] + (not last[1])] = True
        return np.array(ids, np.int32), mask

    def _common(self, ids: list[int], text: str, settings: Mapping[str, Any]) -> tuple[int, bool]:
        """Returns how many leading ``ids`` are tokens of the prefix ``text``, and whether these are all it has."""
        prefix = self.tokenizer(text, **{**settings, "add_special_tokens": False})["input_ids"]
        shift = 0
        while shift < len(ids) and prefix and ids[shift] != prefix[0]:
            shift += 1  # tokens that the tokenizer puts before a text
        same = 0
        while same < len(prefix) and shift + same < len(ids) and prefix[same] == ids[shift + same]:
            same += 1
        return (shift + same if prefix else 0), same == len(prefix)


def _is_exact(text: str, size: int) -> bool:
    """Returns whether tokens of ``size`` bytes are the text as it is."""
    if text.isascii():
        return len(text) == size
    return len(text.encode()) == size and unicodedata.is_normalized("NFC", text)


def _span_mask(
    ends: npt.NDArray[np.int64], starts: Sequence[int], texts: Sequence[str], spans: Sequence[Sequence[Span]]
) -> Mask:
    """Returns which tokens hold a byte of ``spans``, characters of each of ``texts``, bool ``[tokens of all texts]``.

    ``ends[i]`` is the byte before token ``i`` of all texts, one after the other, and text ``n`` begins at byte
    ``starts[n]``.
    """
    edges = [
        (start + _num_bytes(text, first), start + _num_bytes(text, last))
        for start, text, text_spans in zip(starts, texts, spans, strict=False)
        for first, last in text_spans
        if first < last
    ]
    depth = np.zeros(len(ends), np.int64)
    if edges:
        firsts, lasts = np.array(edges).T
        np.add.at(depth, np.searchsorted(ends[1:], firsts, "right"), 1)
        np.add.at(depth, np.searchsorted(ends[1:], lasts, "left") + 1, -1)
    return np.cumsum(depth[:-1]) > 0


def _num_bytes(text: str, count: int) -> int:
    """Returns how many bytes the first ``count`` characters of a text have."""
    return min(count, len(text)) if text.isascii() else len(text[:count].encode())


def token_bytes(tokenizer: "PreTrainedTokenizerBase") -> npt.NDArray[np.int64] | None:
    """Returns how many bytes of text each token stands for, int64 ``[vocabulary]``; None unless it is byte-level BPE.

    This saves a third of the time of tokenizing: the library need not track where every token came from.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    from tokenizers import decoders, normalizers

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.decoder, decoders.ByteLevel):
        return None
    if backend.normalizer is not None and not isinstance(backend.normalizer, normalizers.NFC):
        return None
    words = backend.get_vocab(with_added_tokens=False)  # each character of a word is a byte
    added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
    table = np.zeros(max([*words.values(), *added], default=0) + 1, np.int64)
    for word, number in words.items():
        table[number] = len(word)
    for number, content in added.items():
        table[number] = len(content.encode())
    return table
