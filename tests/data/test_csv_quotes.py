"""Quotes of CSV files: what is accepted is read as Python's own strict reader reads it, all else is refused."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.data.sources.csv_quotes import require_closed_quotes
from arctic_training.data.sources.text import CsvSource
from arctic_training.errors.types import DataError


def read(path: Path, **section: Any) -> list[dict[str, Any]]:
    config = CsvSource.config_type.model_validate({"type": "csv", "name_or_path": str(path), **section})
    rows: list[dict[str, Any]] = CsvSource(None, config)("train").to_list()
    return rows


@given(st.lists(st.sampled_from(['"', '"', '""', "a", "b ", ",", "\n", "\r\n", "é"]), max_size=14))
def test_quotes_are_those_of_a_strict_reader(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    text = "".join(parts) + "\n"
    path = tmp_path_factory.getbasetemp() / "quotes.csv"
    path.write_bytes(text.encode())
    try:
        list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error:
        with pytest.raises(DataError, match="a quote inside a cell in quotes is written twice"):
            require_closed_quotes(path, ",")
    else:
        require_closed_quotes(path, ",")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'q,a\n1,"b\nc,d\ne,f\n', "a.csv:2: the quote that begins a cell is never closed"),
        ("a.csv", 'q,a\n1,"say \\"hi\\" now"\n', "a.csv:2: text follows the quote that ends a cell; a quote inside"),
        ("a.tsv", 'q\ta\n1\t"hi\n2\t"b"\n', "a.tsv:3: text follows the quote that ends a cell that begins on line 2"),
        ("a.csv", '\ufeff"q",a\n"1" x,2\n', "a.csv:2: text follows"),
        ("a.csv", 'q,a\r"1,2\r', "a.csv:1: the quote that begins a cell is never closed"),
    ],
)
def test_a_cell_that_would_swallow_others_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_quotes_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('q\ta\n1\t"hi\n"2" is\t"b"\n')
    assert read(tmp_path / "a.tsv", quoted=False) == [{"q": "1", "a": '"hi'}, {"q": '"2" is', "a": '"b"'}]
    (tmp_path / "a.csv").write_text('q,a\n5" pipe,"say ""hi"", and\ngo"\n')
    assert read(tmp_path / "a.csv") == [{"q": '5" pipe', "a": 'say "hi", and\ngo'}]
