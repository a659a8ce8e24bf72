"""Texts to tokens, and stretches of characters to the tokens that hold them."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

from arctic_training.data.tokenization.chat_template import Span

Tokens = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_unknown: ContextVar[dict[str, None] | None] = ContextVar("unknown", default=None)


@contextmanager
def unknown_words() -> Iterator[dict[str, None]]:
    """Collects the words, in their order, for which this thread's texts get the unknown token meanwhile."""
    met: dict[str, None] = {}
    token = _unknown.set(met)
    try:
        yield met
    finally:
        _unknown.reset(token)


class SpanTokenizer:
    """Tokenizes each text once, as a whole, and tells which tokens hold a character of its spans."""

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> None:
        """``arguments`` are handed to the tokenizer."""
        self.tokenizer, self.arguments = tokenizer, dict(arguments or {})
        self._bytes = None if self.arguments else token_bytes(tokenizer)

    def __call__(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], *, special: bool = False
    ) -> list[tuple[Tokens, Mask]]:
        """``special`` lets the tokenizer add its own first and last tokens, which belong to no span."""
        if self._bytes is None:
            return self._by_offsets(texts, spans, special)
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        made = []
        for text, stretches, encoding in zip(
            texts, spans, backend.encode_batch_fast(list(texts), add_special_tokens=special), strict=True
        ):
            ids = np.array(encoding.ids, np.int32)
            ends = np.cumsum(self._bytes[ids])
            raw = text.encode()
            whole = len(text) == len(raw) or unicodedata.is_normalized("NFC", text)
            if whole and (ends[-1] if len(ends) else 0) == len(raw):
                made.append((ids, _held(ends, text, stretches)))
            else:  # some token stands for other text than its own
                made += self._by_offsets([text], [stretches], special)
        return made

    def _by_offsets(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], special: bool
    ) -> list[tuple[Tokens, Mask]]:
        settings = {"add_special_tokens": special, "return_attention_mask": False, **self.arguments}
        if not self.tokenizer.is_fast:
            return [self._by_prefixes(text, found, settings) for text, found in zip(texts, spans, strict=True)]
        settings["return_offsets_mapping"] = True
        read = self.tokenizer(list(texts), **settings)
        made, unknown = [], _unknown.get()
        for text, ids, offsets, stretches in zip(texts, read["input_ids"], read["offset_mapping"], spans, strict=True):
            if unknown is not None:
                found = zip(ids, offsets, strict=True)
                unknown |= {text[slice(*place)]: None for one, place in found if one == self.tokenizer.unk_token_id}
            mask = np.zeros(len(ids), np.bool_)
            places = np.array(offsets, np.int64).reshape(-1, 2)
            for start, end in stretches:
                mask |= (places[:, 0] < end) & (places[:, 1] > start)
            made.append((np.array(ids, np.int32), mask))
        return made

    def _by_prefixes(self, text: str, spans: Sequence[Span], settings: Mapping[str, Any]) -> tuple[Tokens, Mask]:
        """For a tokenizer that cannot say which characters a token holds: by the tokens of the text's beginnings."""
        ids = self.tokenizer(text, **settings)["input_ids"]
        mask = np.zeros(len(ids), np.bool_)
        for start, end in spans:
            first, last = (self._common(ids, text[:place], settings) for place in (start, end))
            mask[first[0] : last[0] + (not last[1])] = True
        return np.array(ids, np.int32), mask

    def _common(self, ids: list[int], text: str, settings: Mapping[str, Any]) -> tuple[int, bool]:
        """How many tokens ``text`` shares with the whole, and whether they are all of its own."""
        mine = self.tokenizer(text, **{**settings, "add_special_tokens": False})["input_ids"]
        shift = 0
        while shift < len(ids) and mine and ids[shift] != mine[0]:
            shift += 1  # tokens that the tokenizer puts in front of a whole text
        same = 0
        while same < len(mine) and shift + same < len(ids) and mine[same] == ids[shift + same]:
            same += 1
        return (shift + same if mine else 0), same == len(mine)


def _held(ends: npt.NDArray[np.int64], text: str, spans: Sequence[Span]) -> Mask:
    """Which tokens hold a byte of ``spans``; ``ends[i]`` is the byte after token ``i``."""
    mask = np.zeros(len(ends), np.bool_)
    ascii_only = text.isascii()
    for start, end in spans:
        if start < end:
            first = start if ascii_only else len(text[:start].encode())
            last = end if ascii_only else first + len(text[start:end].encode())
            mask[np.searchsorted(ends, first, "right") : np.searchsorted(ends, last, "left") + 1] = True
    return mask


def token_bytes(tokenizer: Any) -> npt.NDArray[np.int64] | None:
    """How many bytes of text each token stands for, when that is fixed, as in byte-level BPE; else None.

    With it a third of the time of tokenizing is saved: the library need not track where every token came from.
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
