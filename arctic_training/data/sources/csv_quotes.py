"""Checks the quotes of CSV files, before a cell swallows the rows behind it."""

import re
from pathlib import Path

from arctic_training.data.sources.compression import open_decompressed
from arctic_training.errors.types import DataError

_BOM = b"\xef\xbb\xbf"
_QUOTE = b'"'
_MEND = "a quote inside a cell in quotes is written twice, and with quoted: false quotes are text"


def require_closed_quotes(file: Path, delimiter: str) -> None:
    """Raises `DataError`, with the line, for a cell that begins with a quote and does not end with one.

    A parser would read it up to the next quote of the file, however many rows lie between.
    """
    between = delimiter.encode()
    begin = re.compile(rb'(?:\A|\r|%s)"' % re.escape(between))
    opened = 0  # the line with the quote that is open
    with open_decompressed(file) as lines:
        for number, raw in enumerate(lines, 1):
            line = raw.removeprefix(_BOM) if number == 1 else raw
            at = 0
            while True:
                if not opened:
                    match = begin.search(line, at)
                    if match is None:
                        break
                    opened, at = number, match.end()
                at = line.find(_QUOTE, at)
                if at < 0:
                    break  # the cell goes on in the next line
                if line.startswith(_QUOTE, at + 1):
                    at += 2
                    continue
                at += 1
                rest = line[at:]
                if rest and not rest.startswith((b"\r", b"\n", between)):
                    since = f" that begins on line {opened}" if opened < number else ""
                    raise DataError(f"{file}:{number}: text follows the quote that ends a cell{since}; {_MEND}")
                opened = 0
    if opened:
        raise DataError(f"{file}:{opened}: the quote that begins a cell is never closed; {_MEND}")
