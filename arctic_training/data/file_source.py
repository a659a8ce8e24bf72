"""Rows out of local files: JSON, JSON lines, CSV, Parquet, text."""

import glob
import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from arctic_training.config.changes import FREE
from arctic_training.config.data import DataSourceConfig
from arctic_training.config.paths import impossible, unreadable
from arctic_training.config.problems import Problem
from arctic_training.data import json_rows
from arctic_training.data import split as splits
from arctic_training.data.compression import extension, opened
from arctic_training.data.json_columns import to_dataset
from arctic_training.data.source import DataSource
from arctic_training.errors import DataError

_WHOLE = 256 * 2**20
"""Bytes up to which a file is read as a whole to tell whether it has changed."""


class FileSourceConfig(DataSourceConfig):
    name_or_path: Annotated[str, FREE] = Field(min_length=1)
    """A file, or a pattern such as ``data/*.jsonl``; its files are read in the order of their names."""
    streaming: bool = False
    """Read while training rather than before; for files that are larger than the memory. Needs ``train_iters``."""

    @field_validator("split")
    @classmethod
    def _is_a_split(cls, value: str) -> str:
        return splits.written(value)

    def absent(self) -> list[Problem]:
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

    def load(self, config: Any, split: str) -> Any:
        files = self.files()
        if config.streaming:
            if splits.parse(split)[1:] != (None, None):
                raise DataError(f"{self}: a stream has no length, so that {split!r} cannot be cut out of it")
            return self.stream(files)
        every = self.read(files)
        rows, self._skipped = splits.cut(every, split), splits.skipped(every, split)
        if not len(rows):
            there = f" in {split}, of {len(every)}" if "[" in split else ""
            raise DataError(f"{self}: there are no rows{there}")
        return rows

    @abstractmethod
    def read(self, files: list[Path]) -> Any:
        """The rows of ``files`` as a `datasets.Dataset`. Raises `DataError` with file and line."""

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
                digest.update(file.read_bytes())
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
        return to_dataset(row for file in files for row in self.rows(file))

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


class CsvSourceConfig(FileSourceConfig):
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Between two columns; a tab for .tsv, else a comma, when left out."""

    @field_validator("streaming")
    @classmethod
    def _is_read_before(cls, value: bool) -> bool:
        if value:
            raise ValueError("csv files cannot be streamed; make JSON lines or Parquet of them")
        return value


class CsvSource(FileSource):
    """A table with a heading, each cell of it text; tabs may part its columns."""

    name = "csv"
    config_type = CsvSourceConfig

    def read(self, files: list[Path]) -> Any:
        import pyarrow as pa
        from datasets import Dataset
        from pyarrow import csv

        tables = []
        for file in files:
            require_text(file)
            delimiter = self.config.delimiter or ("\t" if extension(file) == ".tsv" else ",")
            parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            one = csv.ReadOptions(use_threads=False)  # only then an error says which row
            try:
                with opened(file) as text, csv.open_csv(text, read_options=one, parse_options=parse) as begun:
                    texts = dict.fromkeys(begun.schema.names, pa.string())  # a guessed number would lose its zeros
                convert = csv.ConvertOptions(strings_can_be_null=False, column_types=texts)
                with opened(file) as text:
                    table = csv.read_csv(text, read_options=one, parse_options=parse, convert_options=convert)
            except pa.ArrowInvalid as error:
                raise DataError(f"{file}: {_reason(error)}") from None
            if len(set(table.column_names)) < len(table.column_names):
                raise DataError(f"{file}:1: two columns have one name: {', '.join(table.column_names)}")
            tables.append(table)
        return Dataset(_one_table(self, tables))


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
        return Dataset(_one_table(self, tables))

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
        require_text(file)
        with opened(file) as raw:
            text = raw.read().removeprefix(b"\xef\xbb\xbf").decode("utf-8").replace("\r\n", "\n")
        between = self._BETWEEN.get(self.config.sample_by)
        for piece in [text] if between is None else text.split(between):
            if piece.strip():
                yield {"text": piece if between is None else piece.strip("\n")}

    def read(self, files: list[Path]) -> Any:
        return to_dataset(row for file in files for row in self.rows(file))


def require_text(file: Path) -> None:
    """Raises `DataError`, with the line, for a file that is not UTF-8, or that no text editor has written."""
    with opened(file) as lines:
        for number, line in enumerate(lines, 1):
            at = line.find(0)
            if line.startswith((b"\xff\xfe", b"\xfe\xff")) and number == 1:
                raise DataError(f"{file}:1: not UTF-8 (it looks like UTF-16)")
            if at >= 0:
                raise DataError(f"{file}:{number}: not text (a NUL character at byte {at + 1})")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                wrong = f"byte {error.start + 1} is 0x{line[error.start]:02x}"
                raise DataError(f"{file}:{number}: not UTF-8 ({wrong})") from None


def _one_table(source: DataSource, tables: list[Any]) -> Any:
    import pyarrow as pa

    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{source}: the files do not fit together: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0]
