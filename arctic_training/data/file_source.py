"""Rows out of local files: JSON, JSON lines, CSV, Parquet, text."""

import glob
import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from arctic_training.config.data import DataSourceConfig
from arctic_training.config.problems import Problem
from arctic_training.data import json_rows
from arctic_training.data import split as splits
from arctic_training.data.source import DataSource
from arctic_training.errors import DataError

_WHOLE = 256 * 2**20
"""Bytes up to which a file is read as a whole to tell whether it has changed."""


class FileSourceConfig(DataSourceConfig):
    name_or_path: str = Field(min_length=1)
    """A file, or a pattern such as ``data/*.jsonl``; its files are read in the order of their names."""
    streaming: bool = False
    """Read while training rather than before; for files that are larger than the memory. Needs ``train_iters``."""

    def absent(self) -> list[Problem]:
        where = str(Path(self.name_or_path).expanduser())
        if glob.has_magic(where) or Path(where).is_file():
            return []
        return [Problem(("name_or_path",), f"{self.name_or_path}: no such file")]


class FileSource(DataSource):
    """A subclass reads one file."""

    config_type = FileSourceConfig

    def load(self, config: Any, split: str) -> Any:
        files = self.files()
        if config.streaming:
            if splits.parse(split)[1:] != (None, None):
                raise DataError(f"{self}: a stream has no length, so that {split!r} cannot be cut out of it")
            return self.stream(files)
        rows = splits.cut(self.read(files), split)
        if not len(rows):
            raise DataError(f"{self}: there are no rows" + (f" in {split}" if "[" in split else ""))
        return rows

    @abstractmethod
    def read(self, files: list[Path]) -> Any:
        """The rows of ``files`` as a `datasets.Dataset`. Raises `DataError` with file and line."""

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        """The rows of a file, one by one."""
        raise DataError(f"{self}: {self.name} files cannot be streamed")

    def stream(self, files: list[Path]) -> Any:
        from datasets import IterableDataset

        return IterableDataset.from_generator(_generate, gen_kwargs={"files": files, "read": [self.rows] * len(files)})

    def files(self) -> list[Path]:
        """Raises `DataError` when there is none."""
        where = self.config.name_or_path
        path = Path(where).expanduser()
        if path.is_file():
            return [path]
        if path.is_dir():
            raise DataError(f"{where}: is a folder; name a file, or a pattern such as {where.rstrip('/')}/*.jsonl")
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"{where}: no such file")
        return found

    def fingerprint(self, split: str) -> str | None:
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files():
            about = file.stat()
            digest.update(f"{file.name} {about.st_size} ".encode())
            if about.st_size <= _WHOLE:
                digest.update(file.read_bytes())
            else:
                digest.update(f"{file.resolve()} {about.st_mtime_ns}".encode())
        return digest.hexdigest()


def _generate(files: list[Path], read: list[Any]) -> Iterator[dict[str, Any]]:
    for file, rows in zip(files, read, strict=True):
        yield from rows(file)


class JsonLinesSource(FileSource):
    """A file with a row in JSON on every line."""

    name = "jsonl"

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        return json_rows.read_lines(file)

    def read(self, files: list[Path]) -> Any:
        return json_rows.to_dataset(row for file in files for row in self.rows(file))


class JsonSource(JsonLinesSource):
    """A file that is one list of rows; also JSON lines under this extension."""

    name = "json"

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        return json_rows.read_document(file)


class CsvSourceConfig(FileSourceConfig):
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Between two columns; a tab for .tsv, else a comma, when left out."""


class CsvSource(FileSource):
    """A table with a heading; tabs may part its columns."""

    name = "csv"
    config_type = CsvSourceConfig

    def read(self, files: list[Path]) -> Any:
        import pyarrow as pa
        from datasets import Dataset
        from pyarrow import csv

        tables = []
        for file in files:
            delimiter = self.config.delimiter or ("\t" if file.suffix.lower() == ".tsv" else ",")
            parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            one = csv.ReadOptions(use_threads=False)  # only then an error says which row
            convert = csv.ConvertOptions(strings_can_be_null=False)
            try:
                tables.append(csv.read_csv(file, read_options=one, parse_options=parse, convert_options=convert))
            except pa.ArrowInvalid as error:
                raise DataError(f"{file}: {_reason(error)}") from None
        return Dataset(pa.concat_tables(tables, promote_options="permissive"))


class ParquetSource(FileSource):
    """A Parquet file."""

    name = "parquet"

    def read(self, files: list[Path]) -> Any:
        import pyarrow as pa
        from datasets import Dataset
        from pyarrow import parquet

        tables = []
        for file in files:
            try:
                tables.append(parquet.read_table(file, memory_map=True))
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{file}: {_reason(error)}") from None
        return Dataset(pa.concat_tables(tables, promote_options="permissive"))

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        from pyarrow import parquet

        for batch in parquet.ParquetFile(file).iter_batches(1000):
            yield from batch.to_pylist()


class TextSourceConfig(FileSourceConfig):
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What a row is: a line, the text between two empty lines, or a whole file."""


class TextSource(FileSource):
    """Rows with one column, ``text``."""

    name = "text"
    config_type = TextSourceConfig
    _BETWEEN: ClassVar[dict[str, str]] = {"line": "\n", "paragraph": "\n\n"}

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        raw = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
        try:
            text = raw.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise DataError(f"{file}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x})") from None
        between = self._BETWEEN.get(self.config.sample_by)
        for piece in [text] if between is None else text.split(between):
            if piece.strip():
                yield {"text": piece if between is None else piece.strip("\n")}

    def read(self, files: list[Path]) -> Any:
        return json_rows.to_dataset(row for file in files for row in self.rows(file))


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0]
