"""Remarks about a source, made wherever its rows are read: sentences, logged once for the source, and counts."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

UNREAD_COLUMNS = "has columns that nothing reads"
UNREAD_KEYS = "has message keys that nothing reads"

Remarks = dict[tuple[str, str], bool | int]
"""Whether each remark, as (sentence, name), holds for all rows; how often something, as (kind, name), was counted."""
DROPPED, TRUNCATED = "dropped", "truncated"
"""Kinds of counts: samples that are left out, and texts that are cut, by the reason."""
ROWS, USED = "rows", "rows used"
"""Kinds of counts: the rows of each source, and those that samples are made of."""
ROLES, TOOLS = "messages", "tools"
"""Kinds of counts: messages by their role, and what there is of tools."""

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
        collected[sentence, name] = holds and bool(collected.get((sentence, name), True))


def count(kind: str, name: str, number: int = 1) -> None:
    """Adds ``number`` to what was counted of ``kind`` under ``name``."""
    if (collected := _collected.get()) is not None and number:
        collected[kind, name] = collected.get((kind, name), 0) + int(number)


def counts(collected: Remarks) -> Remarks:
    """Returns the counts among remarks."""
    return {about: value for about, value in collected.items() if not isinstance(value, bool)}


def unread_columns(columns: Iterable[str], read: Iterable[str]) -> None:
    """Remarks on the columns of a source that nothing reads."""
    for name in sorted({*columns} - {*read}):
        remark(UNREAD_COLUMNS, name)


def repeat(collected: Remarks) -> None:
    """Makes remarks again that were collected elsewhere."""
    for (sentence, name), value in collected.items():
        if isinstance(value, bool):
            remark(sentence, name, holds=value)
        else:
            count(sentence, name, value)


def write(collected: Remarks, folder: Path) -> None:
    """Appends remarks to the file of this process in ``folder``."""
    if collected:
        with (folder / f"{os.getpid()}.remarks").open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(collected)) + "\n")


def read(folder: Path) -> None:
    """Makes the remarks again that other processes wrote to ``folder``."""
    for file in sorted(folder.glob("*.remarks")):
        for line in file.read_text(encoding="utf-8").splitlines():
            repeat(from_json(json.loads(line)))


def to_json(collected: Remarks) -> list[list[object]]:
    """Returns remarks as values of JSON."""
    return [[*about, value] for about, value in collected.items()]


def from_json(values: Iterable[Sequence[Any]]) -> Remarks:
    """Returns the remarks that `to_json` returned as ``values``."""
    return {(sentence, name): value for sentence, name, value in values}


def lines(collected: Remarks, source: str) -> Sequence[str]:
    """Returns a line for each sentence, with all its names."""
    names: dict[str, list[str]] = {}
    for (sentence, name), holds in sorted(collected.items()):
        if holds is True:
            names.setdefault(sentence, []).append(name)
    return [f"{source} {sentence}" + (f": {', '.join(some)}" if any(some) else "") for sentence, some in names.items()]
