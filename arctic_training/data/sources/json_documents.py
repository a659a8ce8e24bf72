"""Reads JSON values one after the other from a file, with only the current one in memory."""

import codecs
import json
from bisect import bisect_left
from pathlib import Path
from typing import BinaryIO

from arctic_training.data.formats.json_text import DECODER, RepeatedKeyError
from arctic_training.errors.types import DataError

_BLOCK = 2**20
_SPACE = " \t\n\r\x0b\x0c"
_UNCERTAIN = 64
"""An error this close to the end of the text, in characters, may mean that more must be read."""


class JsonReader:
    """Reads values, and the characters between them."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        """``file`` is at its beginning; ``path`` is its name in messages."""
        self.path, self._file = path, file
        self._text, self._at = "", 0
        self._rest = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        self._line, self._column = 1, 0
        """The position of the text in the file: its line, and the characters before it in this line."""
        self._read = 0
        """Number of bytes before those in ``_rest``."""

    def peek(self) -> str:
        """Returns the next character that is no white space; empty at the end of the file. Raises `DataError`."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def skip(self) -> None:
        """Skips the next character."""
        self._at += 1

    def line(self) -> int:
        """Returns the line of the next character."""
        return self._line + self._text.count("\n", 0, self._at)

    def value(self) -> object:
        """Returns the next value. Raises `DataError`."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - _UNCERTAIN or error.msg.startswith("Unterminated string")
                if cut and self._more(double=True):
                    continue
                raise self.wrong(error.msg, error.pos) from None
            except RepeatedKeyError as error:
                raise DataError(f"{self.path}:{self._repeated_key_line()}: {error}") from None
            except ValueError:
                raise DataError(f"{self.path}: a number of more than 4,300 digits") from None
            except RecursionError:
                raise DataError(f"{self.path}: nested too deeply") from None
            if end == len(self._text) and not isinstance(value, (dict, list, str)) and self._more():
                continue  # a number may go on
            refuse_surrogates(value, self._text[self._at : end], str(self.path))
            self._at = end
            return value

    def wrong(self, message: str, at: int | None = None) -> DataError:
        """Returns the error that the file is not JSON at a position, by default the next character."""
        at = self._at if at is None else at
        before = self._text.rfind("\n", 0, at)
        line = self._line + self._text.count("\n", 0, at)
        column = at - before + (self._column if before < 0 else 0)
        message = "a NUL character" if self._text[at : at + 1] == "\0" else without_ending(message)
        return DataError(f"{self.path}: not JSON ({message} at line {line}, column {column})")

    def _repeated_key_line(self) -> int:
        """Returns the line on which the first mapping of the next value ends that has a key twice."""
        lines = self._text[self._at :].split("\n")

        def is_in(count: int) -> bool:
            try:
                DECODER.raw_decode("\n".join(lines[:count]))
            except RepeatedKeyError:
                return True
            except ValueError:  # it is cut off
                pass
            return False

        return self.line() + bisect_left(range(1, len(lines)), True, key=is_in)

    def _more(self, *, double: bool = False) -> bool:
        """Reads another block, or as much as there is, and returns whether there was any."""
        block = self._file.read(max(_BLOCK, len(self._text) if double else 0))
        if not block and not self._rest:
            return False
        consumed = self._text[: self._at]
        lines = consumed.count("\n")
        self._line += lines
        self._column = self._at - consumed.rfind("\n") - 1 + (0 if lines else self._column)
        self._text = self._text[self._at :] + self._decode(self._rest + block, final=not block)
        self._at = 0
        return True

    def _decode(self, raw: bytes, *, final: bool) -> str:
        """Returns the text of bytes; an incomplete character at the end is kept for later. Raises `DataError`."""
        try:
            text, self._rest = raw.decode(), b""
        except UnicodeDecodeError as error:
            if final or error.end < len(raw):
                place = f"byte {self._read + error.start + 1} is 0x{raw[error.start]:02x}{utf16_hint(raw)}"
                raise DataError(f"{self.path}: not UTF-8 ({place})") from None
            text, self._rest = raw[: error.start].decode(), raw[error.start :]
        self._read += len(raw) - len(self._rest)
        return text


def without_ending(message: str) -> str:
    """Returns a message of the JSON decoder, without its ending before a position."""
    return message.removesuffix(" delimiter").removesuffix(" at")


def utf16_hint(raw: bytes) -> str:
    """Returns a hint for bytes that are not UTF-8 and begin like UTF-16; else nothing."""
    return "; it looks like UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""


def refuse_surrogates(value: object, text: str, where: str) -> None:
    """Raises `DataError` when ``value``, read from ``text``, holds half of a surrogate pair, which is no text."""
    if "\\" in text and ("\\ud" in text or "\\uD" in text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError(f"{where}: holds half of a surrogate pair, which is no text") from None
