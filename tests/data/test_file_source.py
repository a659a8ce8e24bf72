"""Local files: what is read, and what is said of files that cannot be."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from arctic_training.config.data import DataSourceConfig
from arctic_training.data.rows import RowReader
from arctic_training.data.sft_factory import SFTDataConfig
from arctic_training.data.source import DataSource
from arctic_training.errors import DataError
from arctic_training.registry import lookup

ROWS = [{"a": 1, "b": "x", "c": {"d": None, "e": [1]}}, {"a": 2, "b": None, "f": 0.5}, {"a": 3, "c": {"g": {}}}]


def source(path: Path | str, **section: Any) -> DataSource:
    """The source that a recipe's bare path, or section with that path, gives."""
    config = SFTDataConfig(sources=[{"name_or_path": str(path), **section}], max_length=8).sources[0]
    assert isinstance(config, DataSourceConfig)
    return lookup("data_source", config.type)(None, config)  # type: ignore[call-arg, return-value]


def rows(path: Path | str, **section: Any) -> list[dict[str, Any]]:
    """The rows, without the keys that are None."""
    read = source(path, **section)("train")
    found = RowReader(read.features)(read.with_format("arrow")[:])
    return [{key: value for key, value in row.items() if value is not None} for row in found]


def refusal(path: Path | str, **section: Any) -> str:
    with pytest.raises(DataError) as refused:
        source(path, **section)("train")
    return str(refused.value)


EXPECTED = [{key: value for key, value in row.items() if value is not None} for row in ROWS]


def test_json_lines_lose_and_add_nothing(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\ufeff" + "".join(json.dumps(row) + "\n\n" for row in ROWS), encoding="utf-8")
    assert rows(file) == EXPECTED


@pytest.mark.parametrize("as_list", [True, False])
def test_json(tmp_path: Path, as_list: bool) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(ROWS, indent=1) if as_list else "\n".join(map(json.dumps, ROWS)))
    assert rows(file) == EXPECTED


def test_numbers_of_any_size_and_kind(tmp_path: Path) -> None:
    told = [{"n": 1, "m": 2**70, "b": True, "x": [0.26005620864429313]}, {"n": "one", "m": 1, "b": False}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, told)))
    assert rows(file) == told


def test_csv_and_tsv(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,completion\nhi,"a\nb"\n,c\n')
    assert rows(tmp_path / "rows.csv") == [{"prompt": "hi", "completion": "a\nb"}, {"prompt": "", "completion": "c"}]
    (tmp_path / "rows.tsv").write_text("prompt\tcompletion\n1,5\t2\n")
    assert rows(tmp_path / "rows.tsv") == [{"prompt": "1,5", "completion": "2"}]


def test_csv_cells_are_text_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion,at\n1+1,02,2026-01-02\ntrue,NA,\n")
    assert rows(tmp_path / "rows.csv") == [
        {"prompt": "1+1", "completion": "02", "at": "2026-01-02"},
        {"prompt": "true", "completion": "NA", "at": ""},
    ]


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "rows.parquet")
    assert rows(tmp_path / "rows.parquet") == [{"text": "a"}, {"text": "b"}]


def test_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("a\nb\r\n\n\nc\n")
    assert [row["text"] for row in rows(file)] == ["a", "b", "c"]
    assert [row["text"] for row in rows(file, sample_by="paragraph")] == ["a\nb", "c"]
    assert [row["text"] for row in rows(file, sample_by="document")] == ["a\nb\n\n\nc\n"]


def test_patterns_and_slices(tmp_path: Path) -> None:
    for name in "ba":
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    assert [row["text"] for row in rows(tmp_path / "*.txt")] == ["a1", "a2", "b1", "b2"]
    assert [row["text"] for row in rows(tmp_path / "*.txt", split="train[1:3]")] == ["a2", "b1"]
    assert [row["text"] for row in rows(tmp_path / "*.txt", split="train[75%:]")] == ["b2"]
    assert [row["text"] for row in rows(tmp_path / "*.txt", split="x[-1:]")] == ["b2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": 1}\n{"a": 1 "b"}\n', "rows.jsonl:2: not JSON (Expecting ',' at column 9)"),
        (b'{"a": 1}\n\n[1]\n', "rows.jsonl:3: a row is a mapping of columns, not list"),
        (b'{"a": "\xe9"}\n', "rows.jsonl:1: not UTF-8 (byte 8 is 0xe9)"),
        (b'{"a": "\\ud800"}\n', "rows.jsonl:1: holds half of a surrogate pair, which is no text"),
        (b'{"a": "\x00"}\n', "rows.jsonl:1: not JSON (a NUL character at column 8)"),
        (b"[" * 100_000, "rows.jsonl:1: nested too deeply"),
        (b"", "rows.jsonl: there are no rows"),
        (b"\n \n", "rows.jsonl: there are no rows"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: bytes, said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(text)
    assert refusal(file).endswith(said)


def test_other_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jsonl").endswith("none.jsonl: no such file")
    (tmp_path / "folder.json").mkdir()
    assert "is a folder; name a file" in refusal(tmp_path / "folder.json")
    (tmp_path / "x.json").write_text('[{"a": 1},\n {"a": }]')
    assert refusal(tmp_path / "x.json").endswith("x.json: not JSON (Expecting value at line 2, column 8)")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n1,2,3\n")
    assert "x.csv: CSV parse error: Row #3: Expected 2 columns, got 3" in refusal(tmp_path / "x.csv")
    (tmp_path / "x.parquet").write_text("no parquet")
    assert "x.parquet: " in refusal(tmp_path / "x.parquet")
    (tmp_path / "x.txt").write_bytes(b"a\nb\xff\n")
    assert refusal(tmp_path / "x.txt").endswith("x.txt:2: not UTF-8 (byte 2 is 0xff)")
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(ValueError, match="is not a name, with a slice"):
        source(tmp_path / "x.txt", split="train[1]")


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("abc")
    before = source(file).fingerprint("train")
    file.write_text("abc")
    assert source(file).fingerprint("train") == before
    file.write_text("abd")
    assert source(file).fingerprint("train") != before
