"""Reads the files that the tracker `jsonl` writes."""

import json
from collections.abc import Mapping
from pathlib import Path

METRICS = "metrics.jsonl"
"""The name of the file in a run folder."""

Record = Mapping[str, float]
"""``step``, ``time`` in seconds since 1970, and the metrics."""


def read_records(path: Path) -> tuple[list[Record], int]:
    """Returns the records of a file, the oldest first, and the number of lines that cannot be read.

    Such a line is one that the run was killed in. A file that does not exist has neither.
    """
    records, unread = list[Record](), 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
            numbers = {name: one for name, one in values.items() if type(one) in (int, float)}
            records.append({**numbers, "step": int(values["step"])})
        except (ValueError, KeyError, TypeError, AttributeError):
            unread += 1
    return records, unread
