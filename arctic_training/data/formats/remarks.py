"""Remarks about a source: made wherever its rows are read, and logged once for the source."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

UNREAD_COLUMNS = "has columns that nothing reads"
UNREAD_KEYS = "has message keys that nothing reads"

Remarks = dict[tuple[str, str], bool]
"""The remarks, as (sentence, name), and whether each holds for all rows."""

_collected: ContextVar[Remarks | None] = ContextVar("remarks", default=None)


@contextmanager
def collect() -> Iterator[Remarks]:
    """Collects the remarks that this thread makes inside."""
    collected: Remarks = {}
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def remark(sentence: str, name: str = "", *, holds: bool = True) -> None:
    """Makes a remark; ``name`` is what the sentence is about. One that once does not hold is withdrawn for good."""
    if (collected := _collected.get()) is not None:
        collected[sentence, name] = holds and collected.get((sentence, name), True)


def unread_columns(columns: Iterable[str], read: Iterable[str]) -> None:
    """Remarks on the columns of a source that nothing reads."""
    for name in sorted({*columns} - {*read}):
        remark(UNREAD_COLUMNS, name)


def repeat(collected: Remarks) -> None:
    """Makes remarks again that were collected elsewhere."""
    for (sentence, name), holds in collected.items():
        remark(sentence, name, holds=holds)


def write(collected: Remarks, folder: Path) -> None:
    """Appends remarks to the file of this process in ``folder``."""
    if collected:
        with (folder / f"{os.getpid()}.remarks").open("a", encoding="utf-8") as file:
            file.write(json.dumps([[*about, holds] for about, holds in collected.items()]) + "\n")


def read(folder: Path) -> None:
    """Makes the remarks again that other processes wrote to ``folder``."""
    for file in sorted(folder.glob("*.remarks")):
        for line in file.read_text(encoding="utf-8").splitlines():
            repeat({(sentence, name): holds for sentence, name, holds in json.loads(line)})


def lines(collected: Remarks, source: str) -> Sequence[str]:
    """Returns a line for each sentence, with all its names."""
    names: dict[str, list[str]] = {}
    for (sentence, name), holds in sorted(collected.items()):
        if holds:
            names.setdefault(sentence, []).append(name)
    return [f"{source} {sentence}" + (f": {', '.join(some)}" if any(some) else "") for sentence, some in names.items()]
