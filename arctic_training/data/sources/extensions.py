"""Extensions of local files, and the sources that read them."""

from pathlib import Path

SOURCE_BY_EXTENSION = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
"""The source that reads files of an extension, compressed or not."""

_ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zstd")
"""What follows the extension of a file that is compressed."""


def extension(path: Path) -> str:
    """Returns the extension of what is in a file, in small letters: ``.jsonl`` of ``rows.jsonl.gz``."""
    endings = [ending.lower() for ending in path.suffixes]
    while endings and endings[-1] in _ENDINGS:
        endings.pop()
    return endings[-1] if endings else ""
