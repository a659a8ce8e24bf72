"""Sources of local files: JSON, JSON lines, Parquet."""

import glob
import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from arctic_training.config.checks.files import invalid_path, unreadable
from arctic_training.config.checks.problems import Problem, problems_of_keys
from arctic_training.config.sections.changes import RESUME_SAFE
from arctic_training.data.formats.remarks import remark
from arctic_training.data.sources import json_rows
from arctic_training.data.sources import split as splits
from arctic_training.data.sources.arrow_rows import RowReader
from arctic_training.data.sources.base import DataSource
from arctic_training.data.sources.json_columns import encode_json, to_dataset
from arctic_training.data.sources.spool import Spool
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_MAX_HASHED = 256 * 2**20
"""Bytes up to which the content of a file is hashed; of a larger one its path and time."""


class FileSourceConfig(splits.SplitSourceConfig):
    """A source of local files."""

    name_or_path: Annotated[str, RESUME_SAFE] = Field(min_length=1)
    """A file, or a pattern such as ``data/*.jsonl``, whose files are read in the order of their names."""
    streaming: bool = False
    """Read while training rather than before, for files larger than the disk or memory. Needs ``train_iters`` or
    ``epoch_length``."""

    @property
    def local_size(self) -> float:
        return sum(file.stat().st_size for file in matching_files(self.name_or_path))

    def missing_paths(self) -> list[Problem]:
        return problems_of_keys({"name_or_path": _why_unreadable(self.name_or_path)})


def _why_unreadable(where: str) -> str:
    """Returns why no rows can be read, without opening the file; empty when they may be."""
    if why := invalid_path(where):
        return why
    path = Path(where).expanduser()
    if path.is_dir():
        return f"{where}: is a folder; name a file, or a pattern such as {where.rstrip('/')}/*.jsonl"
    if path.exists() and not path.is_file():
        return f"{where}: not a file"
    if path.exists():
        return f"{where}: the file is empty" if not path.stat().st_size else unreadable(where)
    if not glob.has_magic(str(path)):
        return f"{where}: no such file"
    matches = glob.iglob(str(path), recursive=True)
    return "" if any(Path(name).is_file() for name in matches) else f"{where}: no file has such a name"


def matching_files(where: str) -> list[Path]:
    """Returns the file that ``where`` names, or those of the pattern that it is, by name."""
    path = Path(where).expanduser()
    if path.is_file():
        return [path]
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())


class FileSource(DataSource):
    """Base of sources of local files; a subclass defines `read`, and `rows` for streaming."""

    config: FileSourceConfig
    _skipped = 0
    """Rows of the files before those of the split."""
    _all_rows: "Dataset | None" = None
    """All rows; their temporary files exist as long as this."""

    def load(self, config: FileSourceConfig, split: str) -> "Dataset | IterableDataset":
        import pyarrow as pa

        files = self.files()
        if (name := splits.parse(split)[0]) not in ("", "train", "eval"):
            remark("is read in full, since local files have no splits; name the files instead of the split", name)
        if config.streaming:
            if splits.parse(split)[1:] != (None, None):
                raise DataError(f"{self}: a stream has no length, so that {split!r} cannot be cut out of it")
            return self.stream(files)
        try:
            all_rows = self._all_rows = self.read(files)
        except pa.ArrowException as error:
            raise DataError(f"{self}: the files do not fit together: {reason(error)}") from None
        rows, self._skipped = splits.select_split(all_rows, split), splits.rows_before(all_rows, split)
        if not len(rows):
            which = f" in {split}, of {len(all_rows)}" if "[" in split else ""
            raise DataError(f"{self}: there are no rows{which}")
        return rows

    @abstractmethod
    def read(self, files: list[Path]) -> "Dataset":
        """Returns the rows of ``files`` as a `datasets.Dataset`. Raises `DataError` with file and line."""

    @property
    def folder(self) -> Path | None:
        """The folder for rows that do not fit into memory; None: the system's for temporary files."""
        return getattr(self.data_factory, "cache_folder", None)

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        """Yields the rows of a file. Raises `DataError` for a format that cannot be streamed."""
        raise DataError(f"{self}: {self.name} files cannot be streamed")

    def stream(self, files: list[Path]) -> "IterableDataset":
        """Returns the rows of ``files`` as a `datasets.IterableDataset`."""
        from datasets import IterableDataset

        arguments = {"files": files, "source": type(self), "config": self.config}
        return IterableDataset.from_generator(_generate, gen_kwargs=arguments)

    def files(self) -> list[Path]:
        """Returns the files of the source. Raises `DataError` when there are none."""
        where = self.config.name_or_path
        if not (files := matching_files(where)):
            raise DataError(_why_unreadable(where))
        return files

    def fingerprint(self, split: str) -> str | None:
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files():
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} ".encode())
            if stat.st_size <= _MAX_HASHED:
                with file.open("rb") as content:
                    hashlib.file_digest(content, lambda: digest)
            else:
                digest.update(f"{file.resolve()} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()


def _generate(files: list[Path], source: type[FileSource], config: FileSourceConfig) -> Iterator[dict[str, Any]]:
    """Yields the rows of files. No argument holds state of the run: `datasets` pickles them for a fingerprint."""
    for file in files:
        yield from source(None, config).rows(file)


class JsonLinesSource(FileSource):
    """Files with a row in JSON on every line."""

    name = "jsonl"

    def placed_rows(self, file: Path) -> Iterator[json_rows.PlacedRow]:
        """Yields the rows of a file, each with its place. Raises `DataError`."""
        return json_rows.read_lines(file)

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.placed_rows(file))

    def read(self, files: list[Path]) -> "Dataset":
        return to_dataset((row for file in files for row in self.rows(file)), self.folder, encode=encode_json)

    def place(self, row: int) -> str:
        number = row + self._skipped
        for file in self.files():
            for place, _ in self.placed_rows(file):
                if not number:
                    return place
                number -= 1
        return super().place(row)


class JsonSourceConfig(FileSourceConfig):
    """A source of JSON files."""

    field: str = ""
    """The list of rows in a file that is one mapping: a key, or several joined by dots."""


class JsonSource(JsonLinesSource):
    """Files that are one list of rows, or rows one after the other, of one line each or several."""

    name = "json"
    config: JsonSourceConfig

    def placed_rows(self, file: Path) -> Iterator[json_rows.PlacedRow]:
        return json_rows.read_document(file, self.config.field)


class ParquetSource(FileSource):
    """Parquet files."""

    name = "parquet"

    def read(self, files: list[Path]) -> "Dataset":
        import pyarrow as pa
        from pyarrow import parquet

        spool = Spool(self.folder)
        for file in files:
            try:
                with parquet.ParquetFile(file) as parquet_file:
                    spool.add(parquet_file.schema_arrow.empty_table())
                    for batch in parquet_file.iter_batches(1000):
                        spool.add(pa.Table.from_batches([batch]))
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{file}: {reason(error)}") from None
        try:
            return spool.dataset()
        except ValueError as error:  # a type that `datasets` does not have
            raise DataError(f"{self}: {reason(error)}") from None

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        import datasets
        import pyarrow as pa
        from pyarrow import parquet

        with parquet.ParquetFile(file) as parquet_file:
            read_rows = RowReader(datasets.Features.from_arrow_schema(parquet_file.schema_arrow))
            for batch in parquet_file.iter_batches(1000):
                yield from read_rows(pa.Table.from_batches([batch]))


def reason(error: Exception) -> str:
    """Returns the first line of a library's error."""
    return str(error).splitlines()[0]
