"""The text of single tokens, safe to print."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYMBOLS = {"\n": "⏎\n", "\t": "⇥"}


def token_texts(tokenizer: "PreTrainedTokenizerBase | None", ids: Sequence[int]) -> list[str]:
    """Returns the text of each token, whose concatenation is the text of all.

    A character of several tokens is in the text of its last one. Without a tokenizer the texts are the ids.
    """
    if tokenizer is None:
        return [f"{one} " for one in ids]
    if not getattr(tokenizer, "is_fast", False):
        return [str(tokenizer.decode([one])) for one in ids]
    from tokenizers.decoders import DecodeStream

    stream, texts, first = DecodeStream(skip_special_tokens=False), [], 0
    for number, one in enumerate(ids, 1):
        try:
            text = stream.step(tokenizer.backend_tokenizer, int(one))
        except Exception:  # the library refuses some sequences that no text becomes
            text, stream = str(tokenizer.decode(ids[first:number])), DecodeStream(skip_special_tokens=False)
        first = number if text else first
        texts.append(text or "")
    if first < len(ids):  # a character that does not end
        texts[-1] = str(tokenizer.decode(ids[first:]))
    return texts


def visible(text: str) -> str:
    """Returns ``text`` with symbols for line breaks, which stay, and tabs, and escapes for what is not printable."""
    return "".join(_SYMBOLS.get(char) or (char if char.isprintable() else _escaped(char)) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
