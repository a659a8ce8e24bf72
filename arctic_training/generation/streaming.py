"""Writes a completion while it is generated."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from arctic_training.generation.completions import text_before

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TextStreamer


def text_streamer(
    tokenizer: "PreTrainedTokenizerBase", write: Callable[[str], object], stop_strings: Sequence[str] = ()
) -> "TextStreamer":
    """Returns a streamer of transformers that passes the text of the completion on to ``write``, word by word.

    The text ends before the first of ``stop_strings``; what may be the beginning of one is held back.
    """
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]  # a class of a library without types
        text, written = "", 0

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            end = len(text_before(self.text, stop_strings))
            if not stream_end and end == len(self.text):
                end -= _beginning_of(stop_strings, self.text)
            if end > self.written:
                write(self.text[self.written : end])
                self.written = end

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _beginning_of(stop_strings: Sequence[str], text: str) -> int:
    """Returns how many characters at the end of ``text`` are the beginning of one of ``stop_strings``."""
    lengths = (n for stop in stop_strings for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
    return max(lengths, default=0)
