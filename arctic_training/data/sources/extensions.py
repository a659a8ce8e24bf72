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
"""The name of the source that reads files with an extension, compressed or not."""

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
"""Extensions of compressed files."""


def extension(path: Path) -> str:
    """Returns the extension of a file in lower case, whatever its compression: ``.jsonl`` of ``rows.jsonl.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
