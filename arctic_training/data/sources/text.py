"""Sources of local text files: CSV and plain text."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from arctic_training.data.sources.compression import open_decompressed
from arctic_training.data.sources.csv_quotes import require_closed_quotes
from arctic_training.data.sources.extensions import extension
from arctic_training.data.sources.files import FileSource, FileSourceConfig, reason
from arctic_training.data.sources.json_columns import to_dataset
from arctic_training.data.sources.spool import Spool
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_MAX_ROW_BYTES = 2**24
"""Bytes of the longest row of a CSV file."""


class CsvSourceConfig(FileSourceConfig):
    """A source of CSV files."""

    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """The character between columns; by default a tab for .tsv, else a comma."""
    quoted: bool = True
    """Cells may be in double quotes, and then hold anything; false: a quote is text."""

    @field_validator("streaming")
    @classmethod
    def _check_not_streamed(cls, value: bool) -> bool:
        if value:
            raise ValueError("csv files cannot be streamed; make JSON lines or Parquet of them")
        return value


class CsvSource(FileSource):
    """CSV or TSV files with a header; every cell is text."""

    name = "csv"
    config: CsvSourceConfig

    def read(self, files: list[Path]) -> "Dataset":
        import pyarrow as pa
        from pyarrow import csv

        spool = Spool(self.folder)
        for file in files:
            require_text(file)
            delimiter = self.config.delimiter or ("\t" if extension(file) == ".tsv" else ",")
            if self.config.quoted:
                require_closed_quotes(file, delimiter)
            quote = '"' if self.config.quoted else False
            parse = csv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=self.config.quoted)
            options = csv.ReadOptions(use_threads=False, block_size=_MAX_ROW_BYTES)  # so that errors name the row
            try:
                with (
                    open_decompressed(file) as text,
                    csv.open_csv(text, read_options=options, parse_options=parse) as header,
                ):
                    names = header.schema.names
                texts = dict.fromkeys(names, pa.string())  # a number would lose its leading zeros
                if len(set(names)) < len(names):
                    raise DataError(f"{file}:1: two columns have one name: {', '.join(names)}")
                convert = csv.ConvertOptions(strings_can_be_null=False, column_types=texts)
                with (
                    open_decompressed(file) as text,
                    csv.open_csv(text, read_options=options, parse_options=parse, convert_options=convert) as read,
                ):
                    spool.add(read.schema.empty_table())
                    for batch in read:
                        spool.add(pa.Table.from_batches([batch]))
            except pa.ArrowInvalid as error:
                too_long = "straddling" in str(error)
                why = f"a row is longer than {_MAX_ROW_BYTES} bytes" if too_long else reason(error)
                raise DataError(f"{file}: {why}") from None
        return spool.dataset()


class TextSourceConfig(FileSourceConfig):
    """A source of text files."""

    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What a row is: a line, the text between two empty lines, or a file."""
    separator: str | None = Field(default=None, min_length=1)
    """What stands between the problem and the answer in a line, such as ``" # "``; null: a row is one text."""

    @model_validator(mode="after")
    def _separates_lines(self) -> "TextSourceConfig":
        if self.separator is not None and self.sample_by != "line":
            raise ValueError(f"separator parts a line, and sample_by is {self.sample_by}; give one of them")
        return self


class TextSource(FileSource):
    """Text files, as rows with one column ``text``, or with ``problem`` and ``answer``, which ``separator`` parts."""

    name = "text"
    config: TextSourceConfig

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        require_text(file)
        with open_decompressed(file) as raw:
            lines = (line.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n") for line in raw)
            if self.config.separator is not None:
                yield from self._pairs(lines, self.config.separator, file)
                return
            for text in self._split(lines):
                if text.strip():
                    yield {"text": text}

    def _pairs(self, lines: Iterator[str], separator: str, file: Path) -> Iterator[dict[str, Any]]:
        """Yields problem and answer of each line. Raises `DataError` for one that does not have both."""
        for number, line in enumerate(lines, 1):
            if line.strip():
                parts = [part.strip() for part in line.split(separator)]
                if len(parts) != 2 or not all(parts):
                    what = f"expected a problem, {separator!r} and an answer"
                    raise DataError(f"{file}:{number}: {what}, not {short_repr(line.strip())}")
                yield {"problem": parts[0], "answer": parts[1]}

    def _split(self, lines: Iterator[str]) -> Iterator[str]:
        """Yields the text of each row."""
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

    def read(self, files: list[Path]) -> "Dataset":
        return to_dataset((row for file in files for row in self.rows(file)), self.folder)


def require_text(file: Path) -> None:
    """Raises `DataError`, with the line, for a file that is not UTF-8 or has NUL characters."""
    with open_decompressed(file) as lines:
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
