"""Tokenizes texts, and finds the tokens of spans of characters."""

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
        tokenized = []
        for text, text_spans, encoding in zip(
            texts, spans, backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens), strict=True
        ):
            ids = np.array(encoding.ids, np.int32)
            ends = np.cumsum(self._bytes[ids])
            raw = text.encode()
            is_normalized = len(text) == len(raw) or unicodedata.is_normalized("NFC", text)
            if is_normalized and (ends[-1] if len(ends) else 0) == len(raw):
                tokenized.append((ids, _span_mask(ends, text, text_spans)))
            else:  # some token stands for another text than its own
                tokenized += self._by_offsets([text], [text_spans], add_special_tokens)
        return tokenized

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


def _span_mask(ends: npt.NDArray[np.int64], text: str, spans: Sequence[Span]) -> Mask:
    """Returns which tokens hold a byte of ``spans``; ``ends[i]`` is the byte after token ``i``."""
    mask = np.zeros(len(ends), np.bool_)
    ascii_only = text.isascii()
    for start, end in spans:
        if start < end:
            first = start if ascii_only else len(text[:start].encode())
            last = end if ascii_only else first + len(text[start:end].encode())
            mask[np.searchsorted(ends, first, "right") : np.searchsorted(ends, last, "left") + 1] = True
    return mask


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
