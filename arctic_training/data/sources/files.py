"""Rows out of local files: JSON, JSON lines, Parquet."""

import glob
import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from arctic_training.config.checks.changes import RESUME_SAFE
from arctic_training.config.checks.paths import impossible, unreadable
from arctic_training.config.checks.problems import Problem
from arctic_training.config.sections.data import DataSourceConfig
from arctic_training.data.sources import json_rows
from arctic_training.data.sources import split as splits
from arctic_training.data.sources.arrow_rows import RowReader
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.data.sources.spool import Spool
from arctic_training.errors.types import DataError

_WHOLE = 256 * 2**20
"""Bytes up to which a file is read as a whole to tell whether it has changed."""


class FileSourceConfig(DataSourceConfig):
    name_or_path: Annotated[str, RESUME_SAFE] = Field(min_length=1)
    """A file, or a pattern such as ``data/*.jsonl``; its files are read in the order of their names."""
    streaming: bool = False
    """Read while training rather than before; for files that are larger than the memory. Needs ``train_iters``."""

    @field_validator("split")
    @classmethod
    def _is_a_split(cls, value: str) -> str:
        return splits.written(value)

    def missing_paths(self) -> list[Problem]:
        told = _unreadable(self.name_or_path)
        return [Problem(("name_or_path",), told)] if told else []


def _unreadable(where: str) -> str:
    """Why there are no rows to be had, by a look at the file only; empty when there may be."""
    if told := impossible(where):
        return told
    path = Path(where).expanduser()
    if path.is_dir():
        return f"{where}: is a folder; name a file, or a pattern such as {where.rstrip('/')}/*.jsonl"
    if path.exists() and not path.is_file():
        return f"{where}: not a file"
    if path.exists():
        return f"{where}: the file is empty" if not path.stat().st_size else unreadable(where)
    if not glob.has_magic(str(path)):
        return f"{where}: no such file"
    found = glob.iglob(str(path), recursive=True)
    return "" if any(Path(name).is_file() for name in found) else f"{where}: no file has such a name"


class FileSource(DataSource):
    """A subclass reads one file."""

    config_type = FileSourceConfig
    _skipped = 0
    """Rows of the files before those of the split."""
    _every: Any = None
    """All rows, whose files are there as long as it is."""

    def load(self, config: Any, split: str) -> Any:
        import pyarrow as pa

        files = self.files()
        if config.streaming:
            if splits.parse(split)[1:] != (None, None):
                raise DataError(f"{self}: a stream has no length, so that {split!r} cannot be cut out of it")
            return self.stream(files)
        try:
            every = self._every = self.read(files)
        except pa.ArrowException as error:
            raise DataError(f"{self}: the files do not fit together: {reason(error)}") from None
        rows, self._skipped = splits.cut(every, split), splits.skipped(every, split)
        if not len(rows):
            there = f" in {split}, of {len(every)}" if "[" in split else ""
            raise DataError(f"{self}: there are no rows{there}")
        return rows

    @abstractmethod
    def read(self, files: list[Path]) -> Any:
        """The rows of ``files`` as a `datasets.Dataset`. Raises `DataError` with file and line."""

    @property
    def folder(self) -> Path | None:
        """Where rows go that are too many for the memory; None: where the system has temporary files."""
        return getattr(self.data_factory, "cache_folder", None)

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        """The rows of a file, one by one."""
        raise DataError(f"{self}: {self.name} files cannot be streamed")

    def stream(self, files: list[Path]) -> Any:
        from datasets import IterableDataset

        read = _Rows(type(self), self.config)
        return IterableDataset.from_generator(_generate, gen_kwargs={"files": files, "read": [read] * len(files)})

    def files(self) -> list[Path]:
        """Raises `DataError` when there is none."""
        where = self.config.name_or_path
        path = Path(where).expanduser()
        if path.is_file():
            return [path]
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(_unreadable(where))
        return found

    def fingerprint(self, split: str) -> str | None:
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files():
            about = file.stat()
            digest.update(f"{file.name} {about.st_size} ".encode())
            if about.st_size <= _WHOLE:
                with file.open("rb") as content:
                    while piece := content.read(2**16):
                        digest.update(piece)
            else:
                digest.update(f"{file.resolve()} {about.st_mtime_ns}".encode())
        return digest.hexdigest()


@dataclass
class _Rows:
    """Reads the rows of a file, and holds nothing of the run: `datasets` pickles it to tell streams apart."""

    source: type[FileSource]
    config: FileSourceConfig

    def __call__(self, file: Path) -> Iterator[dict[str, Any]]:
        return self.source(None, self.config).rows(file)


def _generate(files: list[Path], read: list[Any]) -> Iterator[dict[str, Any]]:
    for file, rows in zip(files, read, strict=True):
        yield from rows(file)


class JsonLinesSource(FileSource):
    """A file with a row in JSON on every line."""

    name = "jsonl"

    def placed(self, file: Path) -> Iterator[json_rows.Placed]:
        """The rows of a file, each with its place there."""
        return json_rows.read_lines(file)

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.placed(file))

    def read(self, files: list[Path]) -> Any:
        return to_dataset((row for file in files for row in self.rows(file)), self.folder)

    def place(self, row: int) -> str:
        number = row + self._skipped
        for file in self.files():
            for place, _ in self.placed(file):
                if not number:
                    return place
                number -= 1
        return super().place(row)


class JsonSourceConfig(FileSourceConfig):
    field: str = ""
    """Where the list of rows stands in a file that is one mapping: a key, or several with dots between them."""


class JsonSource(JsonLinesSource):
    """A file that is one list of rows, or rows one after the other, of one line each or several."""

    name = "json"
    config_type = JsonSourceConfig

    def placed(self, file: Path) -> Iterator[json_rows.Placed]:
        return json_rows.read_document(file, self.config.field)


class ParquetSource(FileSource):
    """A Parquet file."""

    name = "parquet"

    def read(self, files: list[Path]) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        spool = Spool(self.folder)
        for file in files:
            try:
                with parquet.ParquetFile(file) as read:
                    spool.add(read.schema_arrow.empty_table())
                    for batch in read.iter_batches(1000):
                        spool.add(pa.Table.from_batches([batch]))
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{file}: {reason(error)}") from None
        try:
            return spool.dataset()
        except ValueError as error:  # of a type that `datasets` has not
            raise DataError(f"{self}: {reason(error)}") from None

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        import datasets
        import pyarrow as pa
        from pyarrow import parquet

        with parquet.ParquetFile(file) as read:
            read_rows = RowReader(datasets.Features.from_arrow_schema(read.schema_arrow))
            for batch in read.iter_batches(1000):
                yield from read_rows(pa.Table.from_batches([batch]))


def reason(error: Exception) -> str:
    """Returns the first line of what a library says."""
    return str(error).splitlines()[0]
