"""Opens local files, compressed or not."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from arctic_training.errors.types import DataError


@contextmanager
def open_decompressed(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading its decompressed bytes. Raises `DataError` for a damaged file."""
    with path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        read = next((read for magic, read in _READERS.items() if start.startswith(magic)), None)
        if read is None:
            yield raw
            return
        try:
            with read(raw) as file:
                yield file
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path}: the compressed file is damaged ({error})") from error


def _zstandard(raw: BinaryIO) -> io.BufferedReader:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw), "zstd"))


_READERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": _zstandard,
}
"""The functions that open a compressed file, by its first bytes."""
