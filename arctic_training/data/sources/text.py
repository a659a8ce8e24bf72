"""Rows out of local files of text: CSV, and text itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from arctic_training.data.sources.compression import opened
from arctic_training.data.sources.extensions import extension
from arctic_training.data.sources.files import FileSource, FileSourceConfig, reason
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.data.sources.spool import Spool
from arctic_training.errors.types import DataError

_LONGEST = 2**24
"""Bytes of a table's longest row."""


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
        from pyarrow import csv

        spool = Spool(self.folder)
        for file in files:
            require_text(file)
            delimiter = self.config.delimiter or ("\t" if extension(file) == ".tsv" else ",")
            parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            one = csv.ReadOptions(use_threads=False, block_size=_LONGEST)  # only then an error says which row
            try:
                with opened(file) as text, csv.open_csv(text, read_options=one, parse_options=parse) as begun:
                    texts = dict.fromkeys(begun.schema.names, pa.string())  # a guessed number would lose its zeros
                names = begun.schema.names
                if len(set(names)) < len(names):
                    raise DataError(f"{file}:1: two columns have one name: {', '.join(names)}")
                convert = csv.ConvertOptions(strings_can_be_null=False, column_types=texts)
                with (
                    opened(file) as text,
                    csv.open_csv(text, read_options=one, parse_options=parse, convert_options=convert) as read,
                ):
                    spool.add(read.schema.empty_table())
                    for batch in read:
                        spool.add(pa.Table.from_batches([batch]))
            except pa.ArrowInvalid as error:
                long = f"a row is longer than {_LONGEST} bytes" if "straddling" in str(error) else reason(error)
                raise DataError(f"{file}: {long}") from None
        return spool.dataset()


class TextSourceConfig(FileSourceConfig):
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What a row is: a line, the text between two empty lines, or a whole file."""


class TextSource(FileSource):
    """Rows with one column, ``text``."""

    name = "text"
    config_type = TextSourceConfig

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        require_text(file)
        with opened(file) as raw:
            lines = (line.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n") for line in raw)
            for piece in self._pieces(lines):
                if piece.strip():
                    yield {"text": piece}

    def _pieces(self, lines: Iterator[str]) -> Iterator[str]:
        if self.config.sample_by == "document":
            yield "".join(lines)
            return
        paragraph: list[str] = []
        for line in lines:
            if line != "\n":
                paragraph.append(line)
            if line == "\n" or self.config.sample_by == "line":
                yield "".join(paragraph).strip("\n")
                paragraph = []
        yield "".join(paragraph).strip("\n")

    def read(self, files: list[Path]) -> Any:
        return to_dataset((row for file in files for row in self.rows(file)), self.folder)


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
